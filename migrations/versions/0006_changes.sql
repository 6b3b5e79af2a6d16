-- Changes of several places at once: a booking moves to another slot, and several bookings are made together or not at
-- all. Both are one transaction, decided under the rows of all slots concerned.

-- Grows with each change of a booking, so that whoever acts on an old view of it can be told.
ALTER TABLE bookings
    ADD COLUMN version integer NOT NULL DEFAULT 1 CONSTRAINT bookings_version_positive CHECK (version > 0);

-- Take places from slots (or give them back, when negative), and keep what persons and places are occupied with: as in
-- 0005, but what becomes free makes room first, and whoever occupies a person or place waits for a turn.
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
        -- An exclusion constraint writes first and looks afterwards: two who have both written wait for each other, until
        -- the server calls it a deadlock, a second later. So they write one after the other, persons in one order.
        PERFORM pg_advisory_xact_lock(hashtextextended('occupied', resource_no))
        FROM (SELECT DISTINCT s.resource_no FROM slots AS s WHERE s.id = ANY (now_occupied)
              AND NOT EXISTS (SELECT FROM occupied AS o WHERE o.slot_id = s.id) ORDER BY s.resource_no) AS persons;
    END IF;
    IF now_free IS NOT NULL THEN  -- first: a booking may move to a time that overlaps its old one
        DELETE FROM occupied WHERE slot_id = ANY (now_free);
    END IF;
    IF now_occupied IS NOT NULL THEN
        INSERT INTO occupied (slot_id, resource_no, during)
        SELECT id, resource_no, tstzrange(starts_at, occupied_until) FROM slots WHERE id = ANY (now_occupied)
        ON CONFLICT (slot_id) DO NOTHING;  -- several bookings share one class
    END IF;
END $$;

-- Move a booking to another slot of its venue, with its places counted once: `word` says what became of it.
--   moved        now; or it is there already, in that size
--   not_found, ended (cancelled or expired), unpaid (it waits for payment), changed (another version than is known)
--   begun        too late for a customer: the old slot has begun
--   slot_not_found, closed, past, too_many, full, occupied       as in commit_bookings, of the new slot
--   payment_required  dearer than before, in a venue that wants to be paid first
-- A refusal leaves the booking where it is. The counts of both slots follow, the new one first.
CREATE FUNCTION move_booking(this_booking uuid, new_slot uuid, new_quantity integer, known_version integer,
    by_actor text, by_request text)
RETURNS TABLE (word text, at timestamptz, may_free_at timestamptz, quantity integer, booking_version integer,
               confirmed_at timestamptz, slot_id uuid, resource_id uuid, capacity integer, available_count integer,
               version bigint, is_open boolean, starts_at timestamptz, ends_at timestamptz)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    old_slot uuid := (SELECT b.slot_id FROM bookings AS b WHERE b.id = this_booking);
    booking  bookings;
    here     slots;
    there    slots;
    places   integer;
    room     integer;
    clock    timestamptz;
    decided  text;
BEGIN
    PERFORM FROM slots WHERE id IN (old_slot, new_slot) ORDER BY id FOR NO KEY UPDATE;
    SELECT * INTO booking FROM bookings WHERE id = this_booking FOR UPDATE;
    IF booking.slot_id IS DISTINCT FROM old_slot THEN
        RAISE EXCEPTION 'the booking moved meanwhile' USING ERRCODE = 'serialization_failure';  -- and is tried again
    END IF;
    clock := clock_timestamp();
    SELECT * INTO here FROM slots WHERE id = old_slot;
    SELECT * INTO there FROM slots WHERE id = new_slot AND venue_id = booking.venue_id;
    places := coalesce(new_quantity, booking.quantity);
    decided := CASE
        WHEN booking.id IS NULL OR booking.status = 'held' THEN 'not_found'
        WHEN booking.status IN ('cancelled', 'expired') THEN 'ended'
        WHEN booking.status = 'pending_payment' THEN 'unpaid'
        WHEN new_slot = old_slot AND places = booking.quantity THEN 'moved'
        WHEN known_version <> booking.version THEN 'changed'
        WHEN by_actor = 'customer' AND here.starts_at <= clock THEN 'begun'
        WHEN there.id IS NULL THEN 'slot_not_found'
        WHEN there.status = 'closed' THEN 'closed'
        WHEN there.starts_at <= clock OR by_actor = 'customer' AND there.closes_at <= clock THEN 'past'
        WHEN by_actor = 'customer' AND there.price_amount > 0
            AND (there.price_currency IS DISTINCT FROM here.price_currency
                OR there.price_amount * places > coalesce(here.price_amount, 0) * booking.quantity) AND 'required' = (
                SELECT v.payment FROM venues AS v WHERE v.id = booking.venue_id) THEN 'payment_required'
        WHEN places > there.capacity THEN 'too_many'
    END;
    IF decided IS NULL THEN
        -- On the same slot its own places are room for it.
        room := there.available_count + CASE WHEN new_slot = old_slot THEN booking.quantity ELSE 0 END;
        IF places > room THEN
            room := room + expire_lapsed_holds(new_slot, clock);
        END IF;
        decided := CASE WHEN places > room THEN 'full' END;
    END IF;
    -- Whatever else occupies the person, other than the slot that this leaves behind empty.
    IF decided IS NULL AND there.one_at_a_time AND EXISTS (
        SELECT FROM occupied_elsewhere(there.id, there.resource_no, tstzrange(there.starts_at, there.occupied_until)) AS elsewhere
        WHERE elsewhere <> old_slot OR here.available_count + booking.quantity < here.capacity)
    THEN
        decided := 'occupied';
    END IF;
    IF decided IS NULL THEN
        UPDATE bookings SET slot_id = new_slot, exclusive = there.exclusive, quantity = places,
            version = booking.version + 1
        WHERE id = this_booking;
        INSERT INTO events (type, actor, request_id, venue_id, slot_id, booking_id, data)
        SELECT moved.type, by_actor, by_request, booking.venue_id, moved.slot_id, this_booking, jsonb_build_object(
            'quantity', moved.quantity, 'from_slot_id', old_slot, 'to_slot_id', new_slot,
            'version', booking.version + 1)
        FROM (VALUES ('booking.moved_away', old_slot, booking.quantity), ('booking.rescheduled', new_slot, places))
            AS moved (type, slot_id, quantity)
        WHERE moved.type = 'booking.rescheduled' OR new_slot <> old_slot;
        -- Told as it is now, while it is locked: a moment later it may be another again, or none.
        SELECT * INTO booking FROM bookings WHERE id = this_booking;
        decided := 'moved';
    END IF;
    RETURN QUERY
        SELECT decided, clock, CASE WHEN decided = 'full' THEN (
                SELECT min(w.expires_at) FROM bookings AS w
                WHERE w.slot_id = new_slot AND w.status IN ('held', 'pending_payment')) END,
            booking.quantity, booking.version, booking.confirmed_at,
            s.id, s.resource_id, s.capacity, s.available_count, s.version, s.status = 'open', s.starts_at, s.ends_at
        FROM (VALUES (1, new_slot), (2, old_slot)) AS both_slots (n, id)
        LEFT JOIN slots AS s ON s.id = both_slots.id AND s.venue_id = booking.venue_id
        WHERE n = 1 OR new_slot <> old_slot
        ORDER BY n;
END $$;

-- Decide a list of requests as one: all of them, or none. The rows are those of `commit_bookings`; if any of them says
-- neither booked nor replayed, nothing was written, and `booked` means "could have been".
CREATE FUNCTION commit_bookings_together(this_attempt uuid, requests jsonb)
RETURNS TABLE (n bigint, word text, at timestamptz, available_after integer, created_at timestamptz,
               deadline timestamptz, may_free_at timestamptz, slot_id uuid, resource_id uuid, capacity integer,
               available_count integer, version bigint, is_open boolean, starts_at timestamptz, ends_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    decided jsonb;
BEGIN
    BEGIN
        SELECT jsonb_agg(to_jsonb(c) ORDER BY c.n) INTO decided FROM commit_bookings(this_attempt, requests) AS c;
        IF EXISTS (SELECT FROM jsonb_array_elements(decided) AS d WHERE d ->> 'word' NOT IN ('booked', 'replayed')) THEN
            RAISE EXCEPTION 'not all of them' USING ERRCODE = 'HF001';
        END IF;
    EXCEPTION WHEN SQLSTATE 'HF001' THEN
        NULL;  -- undone, but remembered: variables are not rolled back
    END;
    RETURN QUERY
        SELECT d.n, d.word, d.at, d.available_after, d.created_at, d.deadline, d.may_free_at, d.slot_id, s.resource_id,
            s.capacity, s.available_count, s.version, s.status = 'open', s.starts_at, s.ends_at
        FROM jsonb_to_recordset(decided) AS d (n bigint, word text, at timestamptz, available_after integer,
            created_at timestamptz, deadline timestamptz, may_free_at timestamptz, slot_id uuid)
        LEFT JOIN slots AS s ON s.id = d.slot_id  -- again: what was undone changed no count
        ORDER BY d.n;
END $$;

-- A payment and its booking may by now be on different slots: both are locked, in the one order.
CREATE OR REPLACE FUNCTION lock_payment(this_payment uuid) RETURNS payments LANGUAGE plpgsql AS $$
DECLARE
    locked payments;
BEGIN
    PERFORM FROM slots WHERE id IN (
        SELECT p.slot_id FROM payments AS p WHERE p.id = this_payment
        UNION ALL
        SELECT b.slot_id FROM payments AS p JOIN bookings AS b ON b.id = coalesce(p.rebooked_id, p.booking_id)
        WHERE p.id = this_payment)
    ORDER BY id FOR NO KEY UPDATE;
    SELECT * INTO locked FROM payments WHERE id = this_payment FOR UPDATE;
    RETURN locked;
END $$;
