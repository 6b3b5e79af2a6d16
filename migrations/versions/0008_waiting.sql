-- The waiting list. Whoever finds no room waits for a slot, or for a service on a day. What becomes free is offered in
-- the transaction that frees it: a hold of some minutes, made by the triggers below under the slot's lock, so that a
-- rival who commits a moment later finds the place taken. When the offer lapses or is given up, the next one gets it.

ALTER TABLE venues
    -- So long a place that became free is kept for whoever has waited for it.
    ADD COLUMN waiting_offer_minutes integer NOT NULL DEFAULT 15
        CONSTRAINT venues_waiting_offer_range CHECK (waiting_offer_minutes BETWEEN 1 AND 1440);

CREATE TABLE waiting_entries (
    id              uuid        NOT NULL CONSTRAINT waiting_entries_pkey PRIMARY KEY,
    venue_id        uuid        NOT NULL CONSTRAINT waiting_entries_of_a_venue REFERENCES venues (id),
    slot_id         uuid        CONSTRAINT waiting_entries_for_a_slot REFERENCES slots (id),  -- null: for any slot …
    service_id      uuid,                                    -- … of this service; null: for that slot
    day             date,                                    -- on the venue's wall; null as the service
    resource_id     uuid,                                    -- null: whoever offers the service
    quantity        integer     NOT NULL,
    status          text        NOT NULL DEFAULT 'waiting',
    customer_name   text        NOT NULL,
    customer_email  text        NOT NULL,
    customer_phone  text,
    wanted_until    timestamptz NOT NULL,                    -- from then on nothing can be offered any more
    first_position  integer     NOT NULL,                    -- what the first answer said: a replay repeats it
    hold_id         uuid,                                    -- of the offer; null while there was none. No foreign key:
                                                             -- a checkout that failed leaves no booking
    offered_slot_id uuid,                                    -- null as the hold; so are the next two
    offered_at      timestamptz,
    offered_until   timestamptz,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),  -- the order of the line
    ended_at        timestamptz,                             -- null while waiting or offered
    CONSTRAINT waiting_entries_of_a_service FOREIGN KEY (service_id, venue_id) REFERENCES services (id, venue_id),
    CONSTRAINT waiting_entries_of_a_resource FOREIGN KEY (resource_id, venue_id) REFERENCES resources (id, venue_id),
    CONSTRAINT waiting_entries_slot_or_day CHECK (
        (slot_id IS NULL) = (service_id IS NOT NULL) AND (slot_id IS NULL) = (day IS NOT NULL)
        AND (resource_id IS NULL OR slot_id IS NULL)),
    -- booked: the offer was taken. lapsed: it was not, in time. left: the customer wanted no more. expired: the slot or
    -- the day came before a place did.
    CONSTRAINT waiting_entries_status_known
        CHECK (status IN ('waiting', 'offered', 'booked', 'lapsed', 'left', 'expired')),
    CONSTRAINT waiting_entries_quantity_range CHECK (quantity BETWEEN 1 AND 100000),
    CONSTRAINT waiting_entries_customer_lengths CHECK (
        char_length(customer_name) BETWEEN 1 AND 200 AND char_length(customer_email) BETWEEN 3 AND 254
        AND char_length(customer_phone) BETWEEN 1 AND 40),
    CONSTRAINT waiting_entries_offer_whole CHECK (
        (hold_id IS NULL) = (offered_slot_id IS NULL) AND (hold_id IS NULL) = (offered_at IS NULL)
        AND (hold_id IS NULL) = (offered_until IS NULL)),
    CONSTRAINT waiting_entries_offer_by_status CHECK (
        CASE WHEN status IN ('waiting', 'expired') THEN hold_id IS NULL
            WHEN status IN ('offered', 'booked', 'lapsed') THEN hold_id IS NOT NULL ELSE true END),
    CONSTRAINT waiting_entries_ended_at_when_ended CHECK ((status IN ('waiting', 'offered')) = (ended_at IS NULL))
);
-- Nobody stands in one line twice.
CREATE UNIQUE INDEX waiting_entries_one_live_per_email
    ON waiting_entries (slot_id, service_id, day, resource_id, lower(customer_email)) NULLS NOT DISTINCT
    WHERE status IN ('waiting', 'offered');
-- Whether anybody waits in a venue at all: what frees places in the others pays for this one look.
CREATE INDEX waiting_entries_anybody ON waiting_entries (venue_id) WHERE status = 'waiting';
-- Whoever waits for a slot, or for a service on a day, in the order of the line.
CREATE INDEX waiting_entries_line_of_slot ON waiting_entries (slot_id, created_at, id)
    WHERE status = 'waiting' AND slot_id IS NOT NULL;
CREATE INDEX waiting_entries_line_of_day ON waiting_entries (service_id, day, created_at, id)
    WHERE status = 'waiting' AND service_id IS NOT NULL;
CREATE INDEX waiting_entries_due ON waiting_entries (wanted_until) WHERE status = 'waiting';  -- whose time has passed
-- The entry of a hold; a hold is offered to one.
CREATE UNIQUE INDEX waiting_entries_one_per_hold ON waiting_entries (hold_id) WHERE hold_id IS NOT NULL;
CREATE INDEX waiting_entries_by_venue ON waiting_entries (venue_id, created_at, id);          -- operators' lists
CREATE INDEX waiting_entries_by_time ON waiting_entries (created_at, id);                     -- the same, of all venues

CREATE FUNCTION waiting_entries_follow_transitions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (CASE OLD.status
        WHEN 'waiting' THEN NEW.status IN ('offered', 'left', 'expired')
        WHEN 'offered' THEN NEW.status IN ('booked', 'lapsed', 'left', 'waiting')  -- the last: its checkout failed
        ELSE false END)
    THEN
        RAISE EXCEPTION 'who waits does not go from % to %', OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'waiting_entries_transitions_allowed';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER waiting_entries_follow_transitions BEFORE UPDATE OF status ON waiting_entries FOR EACH ROW
    WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION waiting_entries_follow_transitions();

-- ---------------------------------------------------------------------------------------------------------------------
-- Who could have what. Every offer is of a slot of this view, to somebody who waits for it, at the moment when it is made.

CREATE VIEW slots_to_offer AS
    SELECT s.* FROM slots AS s
    WHERE s.status = 'open' AND s.available_count > 0
        -- An offer for less than a minute would only keep the place from others.
        AND least(s.closes_at, s.starts_at) > clock_timestamp() + interval '1 minute'
        AND NOT (s.one_at_a_time AND EXISTS (
            SELECT FROM occupied_elsewhere(s.id, s.resource_no, tstzrange(s.starts_at, s.occupied_until))));

CREATE FUNCTION who_waits_for(this_slot uuid) RETURNS TABLE (entry_id uuid, created_at timestamptz, quantity integer)
LANGUAGE sql STABLE AS $$
    SELECT w.id, w.created_at, w.quantity FROM waiting_entries AS w
    WHERE w.status = 'waiting' AND w.slot_id = this_slot
    UNION ALL
    SELECT w.id, w.created_at, w.quantity
    FROM slots AS s JOIN venues AS v ON v.id = s.venue_id
    JOIN waiting_entries AS w ON w.service_id = s.service_id AND w.day = (s.starts_at AT TIME ZONE v.timezone)::date
    WHERE s.id = this_slot AND w.status = 'waiting' AND (w.resource_id IS NULL OR w.resource_id = s.resource_id)
$$;

-- Keep places of a slot, whose row the caller has locked as well as the entry's, for whoever waits. False: at this moment
-- the person or place is taken for another slot, and it is not worth the failure of what frees the place to wait for that.
-- For its turn among those who take them for other hours (`take_places`) it waits, since that is over in moments.
-- The hold is a booking like any other. Its id is random (UUIDv4), as no other is: see `bookings_end_offers`.
CREATE FUNCTION make_offer(this_entry uuid, this_slot uuid, new_hold uuid) RETURNS boolean LANGUAGE plpgsql
SET lock_timeout = '250ms' AS $$
DECLARE
    clock timestamptz := clock_timestamp();
    entry waiting_entries;
BEGIN
    UPDATE waiting_entries AS w
    SET status = 'offered', hold_id = new_hold, offered_slot_id = this_slot, offered_at = clock,
        offered_until = (SELECT least(clock + v.waiting_offer_minutes * interval '1 minute', s.closes_at, s.starts_at)
            FROM slots AS s JOIN venues AS v ON v.id = s.venue_id WHERE s.id = this_slot)
    WHERE w.id = this_entry RETURNING * INTO entry;
    INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, expires_at, available_after, created_at)
    SELECT new_hold, s.venue_id, s.id, s.exclusive, entry.quantity, 'held', entry.offered_until,
        s.available_count - entry.quantity, clock
    FROM slots AS s WHERE s.id = this_slot;
    INSERT INTO events (type, actor, venue_id, slot_id, booking_id, data)
    VALUES ('waiting.offered', 'system', entry.venue_id, this_slot, new_hold, jsonb_build_object('waiting_id', this_entry,
        'slot_id', this_slot, 'quantity', entry.quantity, 'until', entry.offered_until));
    RETURN true;
EXCEPTION WHEN exclusion_violation OR lock_not_available OR deadlock_detected THEN
    RETURN false;
END $$;

-- Offer places of a slot that the caller has locked, and has just made free, to those who wait, the first one that fits
-- first. At most `places`: what was free before may be held in Redis, which is not known here (`app/waiting.py` asks).
-- `around`: what the person or place is free for now may also be other slots within the time of this one, which was
-- theirs alone. Those come out of the order of locks, so this never waits for them.
CREATE FUNCTION offer_places(this_slot uuid, places bigint, around boolean) RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
AS $$
DECLARE
    candidates uuid[] := ARRAY[this_slot];
    passed     uuid[] := '{}';        -- in somebody else's hands at this moment
    found_pair record;
BEGIN
    IF around THEN
        candidates := candidates || ARRAY(
            SELECT o.id FROM slots AS s JOIN slots AS o ON o.resource_id = s.resource_id AND o.id <> s.id
                AND o.starts_at >= s.starts_at AND o.starts_at < s.occupied_until AND o.occupied_until <= s.occupied_until
            WHERE s.id = this_slot AND s.one_at_a_time AND s.available_count = s.capacity
                AND EXISTS (SELECT FROM who_waits_for(o.id))
            ORDER BY o.id FOR NO KEY UPDATE OF o SKIP LOCKED);
    END IF;
    LOOP
        WITH free AS MATERIALIZED (
            SELECT s.id, s.starts_at, CASE s.id WHEN this_slot THEN least(places, s.available_count)
                ELSE s.available_count END AS places
            FROM slots_to_offer AS s WHERE s.id = ANY (candidates)
        )
        SELECT w.entry_id, f.id AS slot_id, w.quantity INTO found_pair
        FROM free AS f CROSS JOIN LATERAL who_waits_for(f.id) AS w
        WHERE w.quantity <= f.places AND w.entry_id <> ALL (passed)
        ORDER BY w.created_at, w.entry_id, f.id <> this_slot, f.starts_at, f.id LIMIT 1;
        EXIT WHEN NOT FOUND;
        PERFORM FROM waiting_entries AS w WHERE w.id = found_pair.entry_id AND w.status = 'waiting' FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            passed := passed || found_pair.entry_id;
        ELSIF NOT make_offer(found_pair.entry_id, found_pair.slot_id, gen_random_uuid()) THEN
            candidates := array_remove(candidates, found_pair.slot_id);
        ELSIF found_pair.slot_id = this_slot THEN
            places := places - found_pair.quantity;
        END IF;
    END LOOP;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- What frees places: bookings that end, shrink or move; capacity that is raised; slots that open or are new.

-- What becomes of an offer is what becomes of its hold. Told row by row, and so before the places go to the next one.
CREATE FUNCTION bookings_end_offers() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN  -- a checkout that Stripe failed: first in line again, and so offered the places anew
        UPDATE waiting_entries SET status = 'waiting', hold_id = NULL, offered_slot_id = NULL, offered_at = NULL,
            offered_until = NULL
        WHERE hold_id = OLD.id AND status = 'offered';
        RETURN NULL;
    END IF;
    WITH ended AS (
        UPDATE waiting_entries SET ended_at = clock_timestamp(), status = CASE NEW.status
            WHEN 'confirmed' THEN 'booked' WHEN 'expired' THEN 'lapsed' ELSE 'left' END
        WHERE hold_id = NEW.id AND status = 'offered'
        RETURNING id, venue_id, quantity, status
    )
    INSERT INTO events (type, actor, venue_id, slot_id, booking_id, data)
    SELECT 'waiting.' || status, 'system', venue_id, NEW.slot_id, NEW.id,
        jsonb_build_object('waiting_id', id, 'quantity', quantity)
    FROM ended;
    RETURN NULL;
END $$;
-- Only the ids of offers are random: of all other bookings this costs a comparison.
CREATE TRIGGER bookings_end_offers AFTER UPDATE OF status ON bookings FOR EACH ROW
    WHEN (get_byte(uuid_send(OLD.id), 6) >> 4 = 4 AND OLD.status IN ('held', 'pending_payment')
        AND NEW.status IN ('confirmed', 'cancelled', 'expired'))
    EXECUTE FUNCTION bookings_end_offers();
CREATE TRIGGER bookings_end_offers_deleted AFTER DELETE ON bookings FOR EACH ROW
    WHEN (get_byte(uuid_send(OLD.id), 6) >> 4 = 4 AND OLD.status IN ('held', 'pending_payment'))
    EXECUTE FUNCTION bookings_end_offers();

-- Bookings that begin never come here. Those that change pay for one look where nobody waits in their venue.
CREATE FUNCTION bookings_offer_places() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    given_back record;
BEGIN
    IF NOT EXISTS (SELECT FROM old_rows AS o WHERE EXISTS (
        SELECT FROM waiting_entries AS w WHERE w.status = 'waiting' AND w.venue_id = o.venue_id))
    THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        FOR given_back IN
            SELECT slot_id, sum(quantity) AS places FROM old_rows
            WHERE status IN ('held', 'pending_payment', 'confirmed') GROUP BY slot_id ORDER BY slot_id
        LOOP
            PERFORM offer_places(given_back.slot_id, given_back.places, true);
        END LOOP;
        RETURN NULL;
    END IF;
    -- Lapsed holds are ended in the middle of other decisions, by `commit_bookings` for one, which have looked at the
    -- slots around already. Whoever ends them otherwise sees to those: `sweep_lapsed_holds`.
    FOR given_back IN
        SELECT slot_id, sum(quantity) AS places, bool_and(lapsed) AS lapsed FROM (
            SELECT o.slot_id, o.quantity, o.status = 'held' AND n.status = 'expired' AS lapsed
            FROM old_rows AS o JOIN new_rows AS n ON n.id = o.id
            WHERE o.status IN ('held', 'pending_payment', 'confirmed')
            UNION ALL
            SELECT slot_id, -quantity, true FROM new_rows WHERE status IN ('held', 'pending_payment', 'confirmed')
        ) AS rows_both GROUP BY slot_id HAVING sum(quantity) > 0 ORDER BY slot_id
    LOOP
        PERFORM offer_places(given_back.slot_id, given_back.places, NOT given_back.lapsed);
    END LOOP;
    RETURN NULL;
END $$;
-- Triggers fire in the order of their names: these after `bookings_deleted` and `bookings_updated`, which count.
CREATE TRIGGER bookings_wanted_deleted AFTER DELETE ON bookings REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION bookings_offer_places();
CREATE TRIGGER bookings_wanted_updated AFTER UPDATE ON bookings REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION bookings_offer_places();

-- The count of a slot changes with every booking: that never comes here, nor does what leaves less room than before.
-- Where a slot opens, all its places are new: whoever held some before it was closed has been told so.
CREATE FUNCTION slots_offer_places() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    IF EXISTS (SELECT FROM waiting_entries WHERE status = 'waiting' AND venue_id = NEW.venue_id) THEN
        PERFORM offer_places(NEW.id,
            CASE OLD.status WHEN 'open' THEN NEW.capacity - OLD.capacity ELSE NEW.available_count END, false);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER slots_wanted_changed AFTER UPDATE OF capacity, status ON slots FOR EACH ROW
    WHEN (NEW.status = 'open' AND (OLD.status <> 'open' OR NEW.capacity > OLD.capacity))
    EXECUTE FUNCTION slots_offer_places();

CREATE FUNCTION slots_offer_new_places() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    new_slot record;
BEGIN
    IF EXISTS (SELECT FROM waiting_entries WHERE status = 'waiting' AND service_id > '00000000-0000-0000-0000-000000000000')
    THEN
        FOR new_slot IN
            SELECT n.id, n.capacity FROM new_rows AS n JOIN venues AS v ON v.id = n.venue_id
            WHERE EXISTS (SELECT FROM waiting_entries AS w WHERE w.status = 'waiting' AND w.service_id = n.service_id
                AND w.day = (n.starts_at AT TIME ZONE v.timezone)::date)
            ORDER BY n.starts_at, n.id
        LOOP
            PERFORM offer_places(new_slot.id, new_slot.capacity, false);
        END LOOP;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER slots_wanted_inserted AFTER INSERT ON slots REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION slots_offer_new_places();

-- End the lapsed holds of one slot, whose row the caller has locked: the function of 0001. Returns how many places came
-- back and were not offered to those who wait for them.
-- Rows that wait for payment are not touched: their Stripe session must be dead first. Who has decided by a clock that
-- other holds of the slot still live gives that clock: one that lapses a moment later is not ended under its decision.
CREATE OR REPLACE FUNCTION expire_lapsed_holds(lapsed_slot uuid, clock timestamptz DEFAULT clock_timestamp())
RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    taken_before integer;
BEGIN
    IF NOT EXISTS (SELECT FROM bookings WHERE slot_id = lapsed_slot AND status = 'held' AND expires_at <= clock) THEN
        RETURN 0;
    END IF;
    taken_before := (SELECT capacity - available_count FROM slots WHERE id = lapsed_slot);
    WITH expired AS (
        UPDATE bookings SET status = 'expired', expires_at = NULL, expired_at = clock_timestamp()
        WHERE slot_id = lapsed_slot AND status = 'held' AND expires_at <= clock
        RETURNING id, venue_id, slot_id, quantity
    )
    INSERT INTO events (type, actor, venue_id, slot_id, booking_id, data)
    SELECT 'hold.expired', 'system', venue_id, slot_id, id, jsonb_build_object('quantity', quantity) FROM expired;
    RETURN (SELECT taken_before - (capacity - available_count) FROM slots WHERE id = lapsed_slot);
END $$;

-- The sweep: end the lapsed holds of at most `batch` slots, those that wait longest first, and return those slots.
-- Locked slots wait for the next round, and do not count: however many of them lapsed, the others get their turn.
CREATE OR REPLACE FUNCTION sweep_lapsed_holds(batch integer) RETURNS SETOF uuid LANGUAGE plpgsql
SET enable_seqscan = off AS $$
DECLARE
    clock       timestamptz := clock_timestamp();  -- as a value, so that the index is entered at it
    lapsed_slot uuid;
BEGIN
    FOR lapsed_slot IN
        SELECT s.id
        FROM (SELECT b.slot_id, min(b.expires_at) AS since FROM bookings AS b
              WHERE b.status = 'held' AND b.expires_at <= clock GROUP BY b.slot_id) AS lapsed
        JOIN slots AS s ON s.id = lapsed.slot_id
        ORDER BY lapsed.since LIMIT batch FOR NO KEY UPDATE OF s SKIP LOCKED  -- never waits: any order will do
    LOOP
        PERFORM expire_lapsed_holds(lapsed_slot, clock);
        IF EXISTS (SELECT FROM slots AS s JOIN waiting_entries AS w ON w.venue_id = s.venue_id
            WHERE s.id = lapsed_slot AND w.status = 'waiting')
        THEN
            PERFORM offer_places(lapsed_slot, 0, true);
        END IF;
        RETURN NEXT lapsed_slot;
    END LOOP;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- What people do.

-- Join a line. `asked` has the fields of an entry. `word`:
--   joined     now, as the `place_in_line`th
--   again      an entry of this id is there already: what it asked for is the caller's to compare
--   changed    the slot is not as it was known: its places may have become free meanwhile
--   double     this e-mail address waits here already
--   crowded    `most` others do
CREATE FUNCTION join_waiting_list(asked jsonb, known_version bigint, most integer, by_actor text, by_request text)
RETURNS TABLE (word text, place_in_line integer) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    wish waiting_entries := jsonb_populate_record(NULL::waiting_entries, asked);
    now_version bigint;
BEGIN
    -- Under this lock nothing becomes free, and the line is as long as it is counted.
    IF wish.slot_id IS NOT NULL THEN
        SELECT s.version, s.venue_id, least(s.closes_at, s.starts_at) INTO now_version, wish.venue_id, wish.wanted_until
        FROM slots AS s WHERE s.id = wish.slot_id FOR NO KEY UPDATE;
    ELSE
        SELECT v.id, (wish.day + 1)::timestamp AT TIME ZONE v.timezone INTO wish.venue_id, wish.wanted_until
        FROM services AS o JOIN venues AS v ON v.id = o.venue_id WHERE o.id = wish.service_id FOR NO KEY UPDATE OF o;
    END IF;
    place_in_line := 1 + (SELECT count(*) FROM waiting_entries AS w WHERE w.status = 'waiting' AND (
        w.slot_id = wish.slot_id
        OR w.service_id = wish.service_id AND w.day = wish.day AND w.resource_id IS NOT DISTINCT FROM wish.resource_id));
    word := CASE
        WHEN EXISTS (SELECT FROM waiting_entries AS w WHERE w.id = wish.id) THEN 'again'
        WHEN now_version <> known_version THEN 'changed'
        WHEN EXISTS (SELECT FROM waiting_entries AS w
            WHERE w.status IN ('waiting', 'offered') AND lower(w.customer_email) = lower(wish.customer_email) AND (
                w.slot_id = wish.slot_id
                OR w.service_id = wish.service_id AND w.day = wish.day
                    AND w.resource_id IS NOT DISTINCT FROM wish.resource_id)) THEN 'double'
        WHEN place_in_line > most THEN 'crowded'
        ELSE 'joined' END;
    IF word = 'joined' THEN
        INSERT INTO waiting_entries (id, venue_id, slot_id, service_id, day, resource_id, quantity, customer_name,
            customer_email, customer_phone, wanted_until, first_position)
        VALUES (wish.id, wish.venue_id, wish.slot_id, wish.service_id, wish.day, wish.resource_id, wish.quantity,
            wish.customer_name, wish.customer_email, wish.customer_phone, wish.wanted_until, place_in_line);
        INSERT INTO events (type, actor, request_id, venue_id, slot_id, data)
        VALUES ('waiting.joined', by_actor, by_request, wish.venue_id, wish.slot_id,
            jsonb_build_object('waiting_id', wish.id, 'quantity', wish.quantity));
    END IF;
    RETURN NEXT;
END $$;

-- Leave a line; an offer goes to the next one. `word`: left (now), ended (before), paying (its places are being paid
-- for), not_found. The counts are those of the slot that was on offer, if one was.
CREATE FUNCTION leave_waiting_list(this_entry uuid, by_actor text, by_request text)
RETURNS TABLE (word text, slot_id uuid, resource_id uuid, capacity integer, available_count integer, version bigint,
               is_open boolean, starts_at timestamptz, ends_at timestamptz)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    entry waiting_entries;
    ended record;
BEGIN
    UPDATE waiting_entries SET status = 'left', ended_at = clock_timestamp()
    WHERE id = this_entry AND status = 'waiting' RETURNING * INTO entry;
    IF FOUND THEN
        INSERT INTO events (type, actor, request_id, venue_id, slot_id, data)
        VALUES ('waiting.left', by_actor, by_request, entry.venue_id, entry.slot_id,
            jsonb_build_object('waiting_id', this_entry, 'quantity', entry.quantity));
        word := 'left';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT * INTO entry FROM waiting_entries WHERE id = this_entry;
    IF entry.status IS DISTINCT FROM 'offered' THEN
        word := CASE WHEN entry.id IS NULL THEN 'not_found' ELSE 'ended' END;
        RETURN NEXT;
        RETURN;
    END IF;
    -- Slot, then booking, then, by the trigger, the entry: as everywhere.
    SELECT * INTO ended FROM cancel_booking(entry.hold_id, true, by_actor, by_request);
    SELECT * INTO entry FROM waiting_entries WHERE id = this_entry;
    word := CASE WHEN ended.word = 'cancelled' THEN 'left' WHEN entry.status = 'offered' THEN 'paying' ELSE 'ended' END;
    RETURN QUERY SELECT word, ended.slot_id, ended.resource_id, ended.capacity, ended.available_count, ended.version,
        ended.is_open, ended.starts_at, ended.ends_at;
END $$;

-- Offer somebody places that are free, as Redis has said too, where `new_hold` keeps them until this is committed.
-- `word`: offered (now, or by this very call before), gone.
CREATE FUNCTION offer_place(this_entry uuid, this_slot uuid, new_hold uuid)
RETURNS TABLE (word text, slot_id uuid, resource_id uuid, capacity integer, available_count integer, version bigint,
               is_open boolean, starts_at timestamptz, ends_at timestamptz)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM slots WHERE id = this_slot FOR NO KEY UPDATE;
    word := 'gone';
    IF EXISTS (SELECT FROM waiting_entries WHERE id = this_entry AND hold_id = new_hold) THEN
        word := 'offered';
    ELSE
        PERFORM FROM waiting_entries WHERE id = this_entry AND status = 'waiting' FOR UPDATE SKIP LOCKED;
        IF FOUND AND EXISTS (SELECT FROM slots_to_offer AS s CROSS JOIN LATERAL who_waits_for(s.id) AS w
            WHERE s.id = this_slot AND w.entry_id = this_entry AND w.quantity <= s.available_count)
        THEN
            IF make_offer(this_entry, this_slot, new_hold) THEN
                word := 'offered';
            END IF;
        END IF;
    END IF;
    RETURN QUERY SELECT word, s.id, s.resource_id, s.capacity, s.available_count, s.version, s.status = 'open',
            s.starts_at, s.ends_at
        FROM slots AS s WHERE s.id = this_slot;
END $$;

-- Who could have which slot at this moment, the first in line first: of all lines of slots, or of those of a service and
-- a day. (Their slots are looked at once for all who wait: in a salon without free time that is most of the work.)
CREATE FUNCTION find_offers(most integer) RETURNS TABLE (entry_id uuid, slot_id uuid, quantity integer) LANGUAGE sql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
AS $$
    SELECT w.id, s.id, w.quantity FROM waiting_entries AS w JOIN slots_to_offer AS s ON s.id = w.slot_id
    WHERE w.status = 'waiting' AND w.slot_id IS NOT NULL AND w.quantity <= s.available_count
    ORDER BY w.created_at, w.id LIMIT most
$$;
CREATE FUNCTION find_offers_of_day(this_service uuid, this_day date, most integer)
RETURNS TABLE (entry_id uuid, slot_id uuid, quantity integer) LANGUAGE sql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
AS $$
    WITH free AS MATERIALIZED (
        SELECT s.id, s.starts_at, s.resource_id, s.available_count
        FROM services AS o JOIN venues AS v ON v.id = o.venue_id
        JOIN slots_to_offer AS s ON s.service_id = o.id
            -- Told twice: for the index, and, an hour closer, for the night in which clocks are changed.
            AND s.starts_at >= (this_day::timestamp AT TIME ZONE v.timezone) - interval '1 hour'
            AND s.starts_at < ((this_day + 1)::timestamp AT TIME ZONE v.timezone) + interval '1 hour'
            AND (s.starts_at AT TIME ZONE v.timezone)::date = this_day
        WHERE o.id = this_service
    )
    SELECT w.id, f.id, w.quantity FROM waiting_entries AS w CROSS JOIN free AS f
    WHERE w.status = 'waiting' AND w.service_id = this_service AND w.day = this_day
        AND w.quantity <= f.available_count AND (w.resource_id IS NULL OR w.resource_id = f.resource_id)
    ORDER BY w.created_at, w.id, f.starts_at, f.id LIMIT most
$$;

-- End what nothing can be offered to any more; returns how many that were.
CREATE FUNCTION expire_waiting(batch integer) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    clock timestamptz := clock_timestamp();
    done  integer;
BEGIN
    WITH passed AS (
        SELECT w.id FROM waiting_entries AS w WHERE w.status = 'waiting' AND w.wanted_until <= clock
        ORDER BY w.wanted_until LIMIT batch FOR UPDATE SKIP LOCKED
    ), expired AS (
        UPDATE waiting_entries AS w SET status = 'expired', ended_at = clock
        FROM passed WHERE w.id = passed.id RETURNING w.id, w.venue_id, w.slot_id, w.quantity
    )
    INSERT INTO events (type, actor, venue_id, slot_id, data)
    SELECT 'waiting.expired', 'system', venue_id, slot_id, jsonb_build_object('waiting_id', id, 'quantity', quantity)
    FROM expired;
    GET DIAGNOSTICS done = ROW_COUNT;
    RETURN done;
END $$;
