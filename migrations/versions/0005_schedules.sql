-- Appointments: what is sold (services), when people work (schedules), and slots that are made from both ahead of time.
-- A slot now also says how long it occupies its person or place: until the buffer after it has passed.

-- ---------------------------------------------------------------------------------------------------------------------
-- What is sold, by whom, and when.

ALTER TABLE resources
    -- When its slots are brought in line with its schedules next; null: it has none, and no slots of one.
    ADD COLUMN slots_due_at timestamptz,
    -- Grows with every change of what its slots are made from: who has read something older makes nothing of it.
    ADD COLUMN schedule_version bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT resources_identity_for_services UNIQUE (id, venue_id);
CREATE INDEX resources_by_slots_due ON resources (slots_due_at) WHERE slots_due_at IS NOT NULL;  -- the worker's look

CREATE TABLE services (
    id               uuid        NOT NULL CONSTRAINT services_pkey PRIMARY KEY,
    venue_id         uuid        NOT NULL CONSTRAINT services_of_a_venue REFERENCES venues (id),
    name             text        NOT NULL,
    duration_minutes integer     NOT NULL,
    buffer_minutes   integer     NOT NULL DEFAULT 0,         -- after each: cleaning, notes, a way to walk
    capacity         integer     NOT NULL DEFAULT 1,
    price_amount     bigint,                                 -- minor units; null together with the currency: free
    price_currency   text,
    active           boolean     NOT NULL DEFAULT true,      -- false: not offered any more; its slots remember it
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT services_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT services_duration_range CHECK (duration_minutes BETWEEN 1 AND 44640),  -- 31 days, as slots
    CONSTRAINT services_buffer_range CHECK (buffer_minutes BETWEEN 0 AND 1440),
    CONSTRAINT services_capacity_range CHECK (capacity BETWEEN 1 AND 100000),
    CONSTRAINT services_price_whole CHECK ((price_amount IS NULL) = (price_currency IS NULL)),
    CONSTRAINT services_price_range CHECK (price_amount BETWEEN 0 AND 1000000000),
    CONSTRAINT services_price_currency_form CHECK (price_currency ~ '^[A-Z]{3}$'),
    CONSTRAINT services_identity_for_others UNIQUE (id, venue_id)
);
CREATE INDEX services_by_venue ON services (venue_id, created_at);  -- the venue's page

-- Who offers what: always things of one venue.
CREATE TABLE service_resources (
    service_id  uuid NOT NULL,
    resource_id uuid NOT NULL,
    venue_id    uuid NOT NULL,
    CONSTRAINT service_resources_pkey PRIMARY KEY (service_id, resource_id),
    CONSTRAINT service_resources_of_a_service FOREIGN KEY (service_id, venue_id) REFERENCES services (id, venue_id),
    CONSTRAINT service_resources_of_a_resource FOREIGN KEY (resource_id, venue_id) REFERENCES resources (id, venue_id)
);

-- When a resource can be booked for some services, in the wall time of its venue. It may have several schedules.
CREATE TABLE schedules (
    id             uuid        NOT NULL CONSTRAINT schedules_pkey PRIMARY KEY,
    venue_id       uuid        NOT NULL,
    resource_id    uuid        NOT NULL,
    step_minutes   integer     NOT NULL,                     -- between the starts, from the beginning of the hours on
    from_date      date        NOT NULL,
    to_date        date,                                     -- the last day; null: for ever
    notice_minutes integer     NOT NULL DEFAULT 0,           -- later than so long before the start is too late
    horizon_days   integer     NOT NULL DEFAULT 60,          -- so many days after today there are slots
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT schedules_of_a_resource FOREIGN KEY (resource_id, venue_id) REFERENCES resources (id, venue_id),
    CONSTRAINT schedules_step_range CHECK (step_minutes BETWEEN 5 AND 1440),
    CONSTRAINT schedules_dates_in_order CHECK (to_date >= from_date),
    CONSTRAINT schedules_notice_range CHECK (notice_minutes BETWEEN 0 AND 525600),
    CONSTRAINT schedules_horizon_range CHECK (horizon_days BETWEEN 1 AND 366),
    CONSTRAINT schedules_identity_for_services UNIQUE (id, resource_id)
);
CREATE INDEX schedules_by_resource ON schedules (resource_id, created_at);  -- making slots, GET /v1/schedules
CREATE INDEX schedules_by_venue ON schedules (venue_id, created_at);        -- GET /v1/schedules?venue=

-- What a schedule's hours are for: only what its resource offers. Who stops offering it stops here, too.
CREATE TABLE schedule_services (
    schedule_id uuid NOT NULL,
    service_id  uuid NOT NULL,
    resource_id uuid NOT NULL,
    CONSTRAINT schedule_services_pkey PRIMARY KEY (schedule_id, service_id),
    CONSTRAINT schedule_services_of_a_schedule FOREIGN KEY (schedule_id, resource_id)
        REFERENCES schedules (id, resource_id) ON DELETE CASCADE,
    CONSTRAINT schedule_services_offered_by_its_resource FOREIGN KEY (service_id, resource_id)
        REFERENCES service_resources (service_id, resource_id) ON DELETE CASCADE
);
CREATE INDEX schedule_services_by_service ON schedule_services (service_id, resource_id);  -- the cascade

-- Weekly hours, in minutes since midnight of the wall clock. Those that touch are one: an appointment may span them.
CREATE TABLE schedule_hours (
    schedule_id uuid    NOT NULL
        CONSTRAINT schedule_hours_of_a_schedule REFERENCES schedules (id) ON DELETE CASCADE,
    weekday     integer NOT NULL,                            -- 1 is Monday
    opens       integer NOT NULL,
    closes      integer NOT NULL,
    CONSTRAINT schedule_hours_pkey PRIMARY KEY (schedule_id, weekday, opens),
    CONSTRAINT schedule_hours_weekday_known CHECK (weekday BETWEEN 1 AND 7),
    CONSTRAINT schedule_hours_within_a_day CHECK (0 <= opens AND opens < closes AND closes <= 1440)
);

-- Days that are not like the others: `off` takes hours away (null: the whole day), `extra` adds some afterwards.
CREATE TABLE schedule_exceptions (
    id          uuid        NOT NULL CONSTRAINT schedule_exceptions_pkey PRIMARY KEY,
    schedule_id uuid        NOT NULL
        CONSTRAINT schedule_exceptions_of_a_schedule REFERENCES schedules (id) ON DELETE CASCADE,
    kind        text        NOT NULL,
    from_date   date        NOT NULL,
    to_date     date        NOT NULL,                        -- the last day
    opens       integer,
    closes      integer,
    note        text,                                        -- null: nothing to say
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT schedule_exceptions_kind_known CHECK (kind IN ('off', 'extra')),
    CONSTRAINT schedule_exceptions_dates_in_order CHECK (to_date BETWEEN from_date AND from_date + 366),
    CONSTRAINT schedule_exceptions_within_a_day CHECK (0 <= opens AND opens < closes AND closes <= 1440),
    CONSTRAINT schedule_exceptions_hours_whole
        CHECK ((opens IS NULL) = (closes IS NULL) AND (opens IS NOT NULL OR kind = 'off')),
    CONSTRAINT schedule_exceptions_note_length CHECK (char_length(note) BETWEEN 1 AND 200)
);
CREATE INDEX schedule_exceptions_by_schedule ON schedule_exceptions (schedule_id, from_date);

-- ---------------------------------------------------------------------------------------------------------------------
-- Slots: for a service, with a buffer, made by a schedule or by hand.

ALTER TABLE slots DISABLE TRIGGER slots_guard_changes;  -- nothing changes that the mirror would have to hear of
ALTER TABLE slots
    -- The end, and the buffer of its service after it: so long nothing else can occupy the same person or place.
    ADD COLUMN occupied_until timestamptz,
    -- From then on it is too late for customers to book; null: not before it starts.
    ADD COLUMN closes_at timestamptz,
    -- A slot that an operator changed is his: schedules never touch it again.
    ADD COLUMN made_by_schedule boolean NOT NULL DEFAULT false,
    -- Closed because no schedule wanted it any more; it opens again when one does.
    ADD COLUMN closed_by_schedule boolean NOT NULL DEFAULT false;
UPDATE slots SET occupied_until = ends_at;
ALTER TABLE slots
    ALTER COLUMN occupied_until SET NOT NULL,
    ADD CONSTRAINT slots_occupied_until_after_end
        CHECK (occupied_until >= ends_at AND occupied_until <= ends_at + interval '1 day'),
    ADD CONSTRAINT slots_close_before_start CHECK (closes_at < starts_at),
    ADD CONSTRAINT slots_closed_by_schedule_is_closed
        CHECK (NOT closed_by_schedule OR made_by_schedule AND status = 'closed'),
    ADD CONSTRAINT slots_of_a_service FOREIGN KEY (service_id, venue_id) REFERENCES services (id, venue_id);
ALTER TABLE slots ENABLE TRIGGER slots_guard_changes;
-- GET /v1/slots?service_id=; then the same of one person, which also finds the slot of a given start
CREATE INDEX slots_by_service_time ON slots (service_id, starts_at, id) WHERE service_id IS NOT NULL;
CREATE INDEX slots_by_offer_time ON slots (resource_id, service_id, starts_at, id) WHERE service_id IS NOT NULL;

-- A slot begins empty, whoever inserts it and with whatever count; without a buffer, unless it is given one.
CREATE OR REPLACE FUNCTION slots_begin_empty() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.available_count := NEW.capacity;
    NEW.exclusive := NEW.capacity = 1;
    NEW.version := 1;
    NEW.occupied_until := coalesce(NEW.occupied_until, NEW.ends_at);
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION slots_guard_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.available_count <> OLD.available_count THEN
        RAISE EXCEPTION 'available_count is kept by the bookings; change those, or the capacity'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'slots_available_count_is_derived';
    END IF;
    IF (NEW.id, NEW.venue_id, NEW.resource_id, NEW.service_id, NEW.starts_at, NEW.ends_at, NEW.occupied_until)
        IS DISTINCT FROM
        (OLD.id, OLD.venue_id, OLD.resource_id, OLD.service_id, OLD.starts_at, OLD.ends_at, OLD.occupied_until) THEN
        RAISE EXCEPTION 'a slot never moves; make another one'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'slots_never_move';
    END IF;
    NEW.available_count := OLD.available_count + NEW.capacity - OLD.capacity;
    NEW.exclusive := NEW.capacity = 1;
    NEW.version := OLD.version + 1;
    RETURN NEW;
END $$;

-- Take places from slots (or give them back, when negative), and keep what persons and places are occupied with.
CREATE OR REPLACE FUNCTION take_places(slot_ids uuid[], quantities bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    now_occupied uuid[];
    now_free     uuid[];
BEGIN
    IF cardinality(slot_ids) > 1 THEN  -- several slots are always locked in one order: no deadlock
        PERFORM FROM slots WHERE id = ANY (slot_ids) ORDER BY id FOR NO KEY UPDATE;
    END IF;
    WITH changed AS (
        UPDATE slots AS s SET available_count = s.available_count - d.quantity, version = s.version + 1
        FROM unnest(slot_ids, quantities) AS d (slot_id, quantity)
        WHERE s.id = d.slot_id
        RETURNING s.id, s.one_at_a_time, s.available_count < s.capacity AS is_occupied
    )
    SELECT array_agg(id) FILTER (WHERE is_occupied), array_agg(id) FILTER (WHERE NOT is_occupied)
    INTO now_occupied, now_free FROM changed WHERE one_at_a_time;
    IF now_occupied IS NOT NULL THEN
        INSERT INTO occupied (slot_id, resource_no, during)
        SELECT id, resource_no, tstzrange(starts_at, occupied_until) FROM slots WHERE id = ANY (now_occupied)
        ON CONFLICT (slot_id) DO NOTHING;  -- several bookings share one class
    END IF;
    IF now_free IS NOT NULL THEN
        DELETE FROM occupied WHERE slot_id = ANY (now_free);
    END IF;
END $$;

-- Whether a payment that came late can still have its places: the function of 0003, buffers counted.
CREATE OR REPLACE FUNCTION has_room(this_slot uuid, places integer) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    clock timestamptz := clock_timestamp();
BEGIN
    PERFORM expire_lapsed_holds(this_slot, clock);
    RETURN EXISTS (
        SELECT FROM slots AS s
        WHERE s.id = this_slot AND s.status = 'open' AND s.starts_at > clock AND s.available_count >= places
            AND NOT (s.one_at_a_time AND EXISTS (
                SELECT FROM occupied_elsewhere(s.id, s.resource_no, tstzrange(s.starts_at, s.occupied_until)))));
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- Bring the slots of a resource that begin in [from_at, before) in line with what its schedules want there: the given
-- ids, services and starts, each with its notice. Returns what was done to which slot:
--   made      it is new                       closed     nobody wants it, nobody booked it
--   reopened  it is wanted again              changed    its capacity, price or notice follows its service's
--   outdated  nothing at all: `seen_version` is not the resource's any more, so the lists may be wrong
-- What is booked, and what an operator has changed, is left alone. Twice is as good as once, also at the same time:
-- the resource's row lock has makers take turns, and an id that is there is never made again.
CREATE FUNCTION apply_schedule(this_resource uuid, seen_version bigint, from_at timestamptz, before timestamptz,
    ids uuid[], service_ids uuid[], starts timestamptz[], notices integer[])
RETURNS TABLE (what text, slot_id uuid) LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    owner resources;
    made  bigint;
BEGIN
    SELECT * INTO owner FROM resources WHERE id = this_resource FOR NO KEY UPDATE;
    IF owner.schedule_version IS DISTINCT FROM seen_version THEN
        RETURN QUERY SELECT 'outdated', NULL::uuid;
        RETURN;
    END IF;

    RETURN QUERY
        INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, service_id, starts_at, ends_at,
            occupied_until, closes_at, capacity, available_count, exclusive, price_amount, price_currency,
            made_by_schedule)
        SELECT w.id, owner.venue_id, owner.id, owner.no, owner.one_at_a_time, v.id, w.starts_at,
            w.starts_at + v.duration_minutes * interval '1 minute',
            w.starts_at + (v.duration_minutes + v.buffer_minutes) * interval '1 minute',
            w.starts_at - nullif(w.notice, 0) * interval '1 minute',
            v.capacity, v.capacity, v.capacity = 1, v.price_amount, v.price_currency, true
        FROM unnest(ids, service_ids, starts, notices) AS w (id, service_id, starts_at, notice)
        JOIN services AS v ON v.id = w.service_id
        WHERE NOT EXISTS (SELECT FROM slots AS s WHERE s.id = w.id)
        ON CONFLICT (id) DO NOTHING
        RETURNING 'made', id;
    GET DIAGNOSTICS made = ROW_COUNT;
    IF made > 0 THEN  -- told once, not a thousand times: nobody can have known them before
        INSERT INTO events (type, actor, venue_id, data) VALUES ('slots.made', 'system', owner.venue_id,
            jsonb_build_object('resource_id', this_resource, 'slots', made, 'from', from_at, 'before', before));
    END IF;

    -- What is locked is being booked at this moment: it is left for the next round, and nobody waits for it here.
    RETURN QUERY
        WITH unwanted AS (
            SELECT u.id FROM slots AS u
            WHERE u.resource_id = this_resource AND u.starts_at >= from_at AND u.starts_at < before
                AND u.made_by_schedule AND u.status = 'open' AND u.available_count = u.capacity
                AND NOT EXISTS (SELECT FROM unnest(ids) AS w (id) WHERE w.id = u.id)
            ORDER BY u.id FOR NO KEY UPDATE SKIP LOCKED
        ), closed AS (
            UPDATE slots AS s SET status = 'closed', closed_by_schedule = true
            FROM unwanted WHERE s.id = unwanted.id RETURNING s.id
        ), told AS (
            INSERT INTO events (type, actor, venue_id, slot_id, data)
            SELECT 'slot.updated', 'system', owner.venue_id, closed.id, '{"status": "closed"}' FROM closed
        )
        SELECT 'closed', closed.id FROM closed;

    RETURN QUERY
        WITH wanted AS (
            SELECT u.id, u.closed_by_schedule AS was_closed, v.capacity, v.price_amount, v.price_currency, t.closes_at
            FROM unnest(ids, service_ids, starts, notices) AS w (id, service_id, starts_at, notice)
            JOIN services AS v ON v.id = w.service_id
            CROSS JOIN LATERAL (SELECT w.starts_at - nullif(w.notice, 0) * interval '1 minute') AS t (closes_at)
            JOIN slots AS u ON u.id = w.id
            WHERE u.made_by_schedule AND u.available_count = u.capacity
                AND (u.closed_by_schedule OR u.status = 'open'
                    AND (u.capacity, u.price_amount, u.price_currency, u.closes_at)
                    IS DISTINCT FROM (v.capacity, v.price_amount, v.price_currency, t.closes_at))
            ORDER BY u.id FOR NO KEY UPDATE OF u SKIP LOCKED
        ), followed AS (
            UPDATE slots AS s
            SET status = 'open', closed_by_schedule = false, capacity = wanted.capacity, closes_at = wanted.closes_at,
                price_amount = wanted.price_amount, price_currency = wanted.price_currency
            FROM wanted WHERE s.id = wanted.id RETURNING s.id, s.capacity, wanted.was_closed
        ), told AS (
            INSERT INTO events (type, actor, venue_id, slot_id, data)
            SELECT 'slot.updated', 'system', owner.venue_id, followed.id,
                jsonb_build_object('status', 'open', 'capacity', followed.capacity)
            FROM followed
        )
        SELECT CASE WHEN followed.was_closed THEN 'reopened' ELSE 'changed' END, followed.id FROM followed;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- Layer 2 again: the function of 0003, word for word, but that a slot occupies its person until its buffer has passed,
-- and that it is past for customers as soon as its notice begins.

-- Decide a list of requests in one transaction, each on its own merits, first come first served.
--
-- requests: [{"id", "slot_id", "venue_id", "quantity", "status": "confirmed" | "held" | "pending_payment",
--   "ttl_ms" (of the latter two),
--   "hold_deadline" (confirm a hold that only its token remembers), "key", "fingerprint" (hex), "repeat" (true when
--   this very request may have been committed before), "name", "email", "phone", "metadata" (JSON text), "manage_hash" (hex),
--   "actor", "request_id", "payment" (pending_payment)}, …]
-- Returns a row for each, in the same order, with one word:
--   booked      done now; for a "held" request: held
--   replayed    an earlier request with this id (and key) did it; nothing was changed
--   mismatch    the key, or the id made from it, was used for another request
--   resolved    the hold or booking of this id ended, or was confirmed, before
--   lapsed      the deadline of the hold has passed
--   payment_required  the venue wants to be paid first, and this is no checkout
--   not_found, closed, past, too_many (more than the capacity), full (the counts say why),
--   occupied    the person or place does something else at that time
-- and the slot's counts after the whole list; `available_after` is the count after this one request.
-- A refusal is a result: nothing is raised, so the others of the list keep theirs. A violated constraint (layer 3) is
-- raised: it can only mean that this function is wrong, that two lists carried one key, or one list an id twice, or
-- overlapping slots of one person. So is a lock that was not to be had in time. Who gets that for a list repeats it one
-- by one.
CREATE OR REPLACE FUNCTION commit_bookings(this_attempt uuid, requests jsonb)
RETURNS TABLE (n bigint, word text, at timestamptz, available_after integer, created_at timestamptz,
               deadline timestamptz, may_free_at timestamptz, slot_id uuid, resource_id uuid, capacity integer,
               available_count integer, version bigint, is_open boolean, starts_at timestamptz, ends_at timestamptz)
LANGUAGE plpgsql
-- A plan is made once in the life of a connection, perhaps while the tables are small and reading them whole is
-- cheapest. Minutes later that plan reads a million bookings. Here every row is looked up by its index, always.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
AS $$
#variable_conflict use_column
DECLARE
    asked      booking_request[];
    r          record;
    other_slot uuid;
    slot_now   uuid;                  -- the slot whose places are being given out
    room       integer;               -- and how many are left of them, those of this list already taken off
    gave_back  boolean := false;      -- holds that lapsed were ended elsewhere: counts read before may be too low
    decided    text;
    to_be_paid boolean := false;
    words      text[] := '{}';        -- what becomes of each request, by its place in the list,
    rooms      integer[] := '{}';     -- the room after it,
    exclusives boolean[] := '{}';     -- and what its booking copies from the slot
    confirmed  bigint;
    clock      timestamptz;
BEGIN
    asked := ARRAY(SELECT q FROM jsonb_populate_recordset(NULL::booking_request, requests) AS q);  -- JSON is read once
    -- One slot in the hands of somebody's slow transaction must not hold up all the others of the list: it is given up
    -- soon, for its caller to repeat alone. 0 would be to wait for ever. Lasts until the end of the transaction.
    IF cardinality(asked) > 1 AND NOT current_setting('lock_timeout')::interval BETWEEN '1 ms' AND '250 ms' THEN
        PERFORM set_config('lock_timeout', '250ms', true);
    END IF;
    -- The lock comes before every read, in id order, and before the inserts: their foreign key takes a share of it.
    PERFORM FROM slots WHERE id = ANY (ARRAY(SELECT q.slot_id FROM unnest(asked) AS q))
        ORDER BY id FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM abandoned_attempts WHERE attempt = this_attempt) THEN
        RAISE EXCEPTION 'this attempt was abandoned' USING ERRCODE = 'query_canceled';
    END IF;
    clock := clock_timestamp();

    FOR r IN
        SELECT q.ordinality AS n, q.slot_id, q.quantity, q.payment IS NOT NULL AS has_payment, s.id AS found,
            s.available_count, s.exclusive, s.resource_no, tstzrange(s.starts_at, s.occupied_until) AS during,
            s.one_at_a_time AND EXISTS (
                SELECT FROM occupied_elsewhere(s.id, s.resource_no, tstzrange(s.starts_at, s.occupied_until))) AS is_occupied,
            CASE  -- all that can be said without knowing what becomes of the others
                WHEN mine.id IS NOT NULL AND (mine.idempotency_key = q.key OR q.repeat)
                    AND mine.fingerprint = decode(q.fingerprint, 'hex') THEN 'replayed'
                WHEN mine.idempotency_key = q.key OR keyed.id <> q.id THEN 'mismatch'
                WHEN mine.slot_id <> q.slot_id OR mine.quantity <> q.quantity THEN 'mismatch'
                WHEN mine.status = 'held' AND mine.expires_at <= clock THEN 'lapsed'
                WHEN mine.status = 'held' AND q.status = 'held' THEN 'replayed'
                WHEN mine.status = 'expired' THEN 'lapsed'
                WHEN mine.status <> 'held' THEN 'resolved'
                WHEN s.id IS NULL THEN 'not_found'
                WHEN s.status = 'closed' THEN 'closed'
                WHEN s.starts_at <= clock OR s.closes_at <= clock AND q.actor <> 'operator' THEN 'past'
                -- Asked only of slots with a price: the others pay nothing for this rule.
                WHEN s.price_amount > 0 AND q.status = 'confirmed' AND q.actor <> 'operator' AND 'required' = (
                    SELECT v.payment FROM venues AS v WHERE v.id = s.venue_id) THEN 'payment_required'
                WHEN mine.status = 'held' THEN 'confirm'
                WHEN q.hold_deadline <= clock THEN 'lapsed'
                WHEN q.quantity > s.capacity THEN 'too_many'
            END AS decided
        FROM unnest(asked) WITH ORDINALITY AS q
        LEFT JOIN slots AS s ON s.id = q.slot_id AND s.venue_id = q.venue_id
        LEFT JOIN bookings AS mine ON mine.id = q.id
        -- Not "=": a plan made while there were no bookings would take bookings_by_venue for as good an index as any, and
        -- read every booking of the venue for each request ever after.
        LEFT JOIN bookings AS keyed ON keyed.idempotency_key = q.key AND keyed.venue_id IS NOT DISTINCT FROM q.venue_id
        ORDER BY q.slot_id, q.ordinality
    LOOP
        IF r.slot_id IS DISTINCT FROM slot_now OR room IS NULL THEN
            slot_now := r.slot_id;
            room := r.available_count;
            IF gave_back THEN  -- also this slot's, perhaps
                room := (SELECT s.available_count FROM slots AS s WHERE s.id = r.found);
            END IF;
        END IF;

        decided := r.decided;
        IF decided IS NULL THEN
            IF r.quantity > room THEN  -- full, unless somebody let a hold lapse
                room := room + expire_lapsed_holds(r.slot_id, clock);
            END IF;
            decided := CASE WHEN r.quantity <= room THEN 'book' ELSE 'full' END;
        END IF;
        -- Another slot of this person or place may be occupied. Two such commits racing are told apart by the
        -- exclusion constraint; this look only saves the one that comes later from meeting it.
        IF decided = 'book' AND r.is_occupied THEN
            -- … unless only by holds that somebody let lapse. Their slots come out of the order of locks, so this one
            -- never waits: a slot that is locked counts as occupied.
            FOR other_slot IN
                SELECT s.id FROM slots AS s
                WHERE s.id IN (SELECT occupied_elsewhere(r.slot_id, r.resource_no, r.during))
                    AND EXISTS (SELECT FROM bookings AS b
                        WHERE b.slot_id = s.id AND b.status = 'held' AND b.expires_at <= clock)
                ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
            LOOP
                PERFORM expire_lapsed_holds(other_slot, clock);
                gave_back := true;
            END LOOP;
            IF EXISTS (SELECT FROM occupied_elsewhere(r.slot_id, r.resource_no, r.during)) THEN
                decided := 'occupied';
            END IF;
        END IF;

        IF decided = 'book' THEN
            room := room - r.quantity;
        END IF;
        to_be_paid := to_be_paid OR r.has_payment AND decided IN ('book', 'confirm');
        words[r.n] := decided;
        rooms[r.n] := room;
        exclusives[r.n] := r.exclusive;
    END LOOP;

    IF 'book' = ANY (words) THEN
        INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, expires_at, customer_name,
            customer_email, customer_phone, metadata, idempotency_key, fingerprint, manage_token_hash, available_after,
            created_at, confirmed_at)
        SELECT q.id, q.venue_id, q.slot_id, exclusives[q.ordinality], q.quantity, q.status,
            CASE WHEN q.status <> 'confirmed' THEN clock + q.ttl_ms * interval '1 millisecond' END,
            q.name, q.email, q.phone, coalesce(q.metadata, '{}')::json, q.key, decode(q.fingerprint, 'hex'),
            decode(q.manage_hash, 'hex'), rooms[q.ordinality], clock, CASE WHEN q.status = 'confirmed' THEN clock END
        FROM unnest(asked) WITH ORDINALITY AS q WHERE words[q.ordinality] = 'book';
    END IF;
    IF 'confirm' = ANY (words) THEN
        UPDATE bookings AS b
        SET status = q.status,
            expires_at = CASE WHEN q.status <> 'confirmed' THEN clock + q.ttl_ms * interval '1 millisecond' END,
            confirmed_at = CASE WHEN q.status = 'confirmed' THEN clock END, customer_name = q.name,
            customer_email = q.email, customer_phone = q.phone, metadata = coalesce(q.metadata, '{}')::json,
            idempotency_key = q.key, fingerprint = decode(q.fingerprint, 'hex'),
            manage_token_hash = decode(q.manage_hash, 'hex'), available_after = rooms[q.ordinality]
        FROM unnest(asked) WITH ORDINALITY AS q
        WHERE words[q.ordinality] = 'confirm' AND b.id = q.id AND b.status = 'held';
        GET DIAGNOSTICS confirmed = ROW_COUNT;
        -- Two requests of this list for one hold would both be told "booked". One that is new is refused by its key.
        IF confirmed <> cardinality(array_positions(words, 'confirm')) THEN
            RAISE EXCEPTION 'one hold was to be confirmed twice'
                USING ERRCODE = 'unique_violation', CONSTRAINT = 'bookings_pkey';
        END IF;
    END IF;
    IF words && '{book, confirm}' THEN
        INSERT INTO events (type, actor, request_id, venue_id, slot_id, booking_id, data)
        SELECT CASE q.status WHEN 'held' THEN 'hold.created' WHEN 'pending_payment' THEN 'checkout.started'
                ELSE 'booking.confirmed' END, q.actor, q.request_id, q.venue_id, q.slot_id, q.id,
            jsonb_build_object('quantity', q.quantity)
        FROM unnest(asked) WITH ORDINALITY AS q WHERE words[q.ordinality] IN ('book', 'confirm') ORDER BY q.ordinality;
    END IF;
    IF to_be_paid THEN
        INSERT INTO payments (id, venue_id, slot_id, booking_id, quantity, amount, currency, params, expires_at)
        SELECT (q.payment ->> 'id')::uuid, q.venue_id, q.slot_id, q.id, q.quantity, (q.payment ->> 'amount')::bigint,
            q.payment ->> 'currency', (q.payment ->> 'params')::json, clock + q.ttl_ms * interval '1 millisecond'
        FROM unnest(asked) WITH ORDINALITY AS q
        WHERE q.payment IS NOT NULL AND words[q.ordinality] IN ('book', 'confirm');
    END IF;

    RETURN QUERY
        SELECT q.ordinality,
            CASE WHEN words[q.ordinality] IN ('book', 'confirm') THEN 'booked' ELSE words[q.ordinality] END,
            clock, rooms[q.ordinality], b.created_at, b.expires_at,
            CASE WHEN words[q.ordinality] = 'full' THEN (
                SELECT min(w.expires_at) FROM bookings AS w
                WHERE w.slot_id = q.slot_id AND w.status IN ('held', 'pending_payment')) END,
            q.slot_id, s.resource_id, s.capacity, s.available_count, s.version, s.status = 'open', s.starts_at,
            s.ends_at
        FROM unnest(asked) WITH ORDINALITY AS q
        LEFT JOIN slots AS s ON s.id = q.slot_id
        LEFT JOIN bookings AS b ON b.id = q.id
        ORDER BY q.ordinality;
END $$;
