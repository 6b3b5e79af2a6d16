-- The engine's tables with every rule of theirs. `app/schema.py` names the same tables for queries; a test keeps the
-- two equal. A slot's places are counted here, by the trigger at the end of this file, and nowhere else.

-- Who sells places in time.
CREATE TABLE venues (
    id               uuid        NOT NULL CONSTRAINT venues_pkey PRIMARY KEY,
    slug             text        NOT NULL CONSTRAINT venues_slug_unique UNIQUE,
    name             text        NOT NULL,
    timezone         text        NOT NULL,
    payment          text        NOT NULL DEFAULT 'on_site',
    hold_ttl_seconds integer,                               -- null: the service's default
    hold_max_seconds integer     NOT NULL DEFAULT 1800,     -- extended holds end here: nobody holds for ever
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT venues_slug_form CHECK (slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    CONSTRAINT venues_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT venues_timezone_length CHECK (char_length(timezone) BETWEEN 1 AND 64),
    CONSTRAINT venues_payment_known CHECK (payment IN ('on_site', 'required')),
    CONSTRAINT venues_hold_ttl_range CHECK (hold_ttl_seconds BETWEEN 1 AND 86400),
    CONSTRAINT venues_hold_max_range CHECK (hold_max_seconds BETWEEN 1 AND 86400)
);

-- What is booked. A person or a place does one thing at a time; an event (a tour, a class) may run several slots at once.
CREATE TABLE resources (
    id              uuid        NOT NULL CONSTRAINT resources_pkey PRIMARY KEY,
    no              bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,  -- a range needs a number: see `occupied`
    venue_id        uuid        NOT NULL CONSTRAINT resources_of_a_venue REFERENCES venues (id),
    name            text        NOT NULL,
    kind            text        NOT NULL,
    one_at_a_time   boolean     NOT NULL GENERATED ALWAYS AS (kind <> 'event') STORED,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT resources_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT resources_kind_known CHECK (kind IN ('person', 'place', 'event')),
    CONSTRAINT resources_no_unique UNIQUE (no),
    -- What slots copy, so that a slot can belong neither to another venue's resource nor to another kind than it says.
    CONSTRAINT resources_identity_for_slots UNIQUE (id, venue_id, no, one_at_a_time)
);
CREATE INDEX resources_by_venue ON resources (venue_id, created_at);  -- the venue's page

-- A bookable interval of a resource with a capacity. Its time and resource never change: another time is another slot.
CREATE TABLE slots (
    id              uuid        NOT NULL CONSTRAINT slots_pkey PRIMARY KEY,
    venue_id        uuid        NOT NULL,
    resource_id     uuid        NOT NULL,
    resource_no     bigint      NOT NULL,
    one_at_a_time   boolean     NOT NULL,
    service_id      uuid,                                    -- null: the resource itself is sold
    starts_at       timestamptz NOT NULL,
    ends_at         timestamptz NOT NULL,
    capacity        integer     NOT NULL,
    available_count integer     NOT NULL,                    -- capacity less live bookings; only the triggers write it
    exclusive       boolean     NOT NULL,                    -- capacity 1; written by the triggers, not GENERATED:
                                                             -- that would make every update of the count lock the key
    status          text        NOT NULL DEFAULT 'open',
    version         bigint      NOT NULL DEFAULT 1,          -- grows with every change of the counts or the status
    price_amount    bigint,                                  -- minor units; null together with the currency: free
    price_currency  text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT slots_of_a_resource FOREIGN KEY (resource_id, venue_id, resource_no, one_at_a_time)
        REFERENCES resources (id, venue_id, no, one_at_a_time),
    CONSTRAINT slots_end_after_start CHECK (ends_at > starts_at AND ends_at <= starts_at + interval '31 days'),
    CONSTRAINT slots_capacity_range CHECK (capacity BETWEEN 1 AND 100000),
    CONSTRAINT slots_available_count_range CHECK (available_count BETWEEN 0 AND capacity),
    CONSTRAINT slots_exclusive_is_capacity_one CHECK (exclusive = (capacity = 1)),
    CONSTRAINT slots_status_known CHECK (status IN ('open', 'closed')),
    CONSTRAINT slots_price_whole CHECK ((price_amount IS NULL) = (price_currency IS NULL)),
    CONSTRAINT slots_price_range CHECK (price_amount BETWEEN 0 AND 1000000000),
    CONSTRAINT slots_price_currency_form CHECK (price_currency ~ '^[A-Z]{3}$'),
    -- What bookings copy: a booking of an exclusive slot is marked so, also after the capacity changed (the cascade).
    CONSTRAINT slots_identity_for_bookings UNIQUE (id, exclusive, venue_id)
);
CREATE INDEX slots_by_venue_time ON slots (venue_id, starts_at, id);        -- GET /v1/slots?venue=, keyset pages
CREATE INDEX slots_by_resource_time ON slots (resource_id, starts_at, id);  -- GET /v1/slots?resource_id=, alternatives

-- The durable row. Its id is chosen by the caller before the transaction and equals the id of the hold it came from.
CREATE TABLE bookings (
    id                uuid        NOT NULL CONSTRAINT bookings_pkey PRIMARY KEY,
    venue_id          uuid        NOT NULL,
    slot_id           uuid        NOT NULL,
    exclusive         boolean     NOT NULL,
    quantity          integer     NOT NULL,
    status            text        NOT NULL,
    expires_at        timestamptz,                           -- set while held or waiting for payment, else null
    customer_name     text,                                  -- null for a hold, which knows nobody
    customer_email    text,
    customer_phone    text,
    metadata          json        NOT NULL DEFAULT '{}',     -- json, not jsonb: a replay repeats the caller's order
    idempotency_key   text,                                  -- null: the request had none
    fingerprint       bytea,                                 -- SHA-256 of what was asked; null for a hold
    manage_token_hash bytea,                                 -- SHA-256; null for a hold
    available_after   integer     NOT NULL,                  -- what the first answer said: a replay repeats it
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    confirmed_at      timestamptz,                           -- since it was confirmed, kept when cancelled later
    cancelled_at      timestamptz,                           -- set exactly when cancelled
    expired_at        timestamptz,                           -- set exactly when expired
    CONSTRAINT bookings_of_a_slot FOREIGN KEY (slot_id, exclusive, venue_id)
        REFERENCES slots (id, exclusive, venue_id) ON UPDATE CASCADE,
    CONSTRAINT bookings_quantity_range CHECK (quantity BETWEEN 1 AND 100000),
    CONSTRAINT bookings_status_known
        CHECK (status IN ('held', 'pending_payment', 'confirmed', 'cancelled', 'expired')),
    CONSTRAINT bookings_deadline_while_unresolved
        CHECK ((status IN ('held', 'pending_payment')) = (expires_at IS NOT NULL)),
    CONSTRAINT bookings_confirmed_at_when_confirmed
        CHECK (CASE status WHEN 'confirmed' THEN confirmed_at IS NOT NULL WHEN 'cancelled' THEN true
               ELSE confirmed_at IS NULL END),
    CONSTRAINT bookings_cancelled_at_when_cancelled CHECK ((status = 'cancelled') = (cancelled_at IS NOT NULL)),
    CONSTRAINT bookings_expired_at_when_expired CHECK ((status = 'expired') = (expired_at IS NOT NULL)),
    CONSTRAINT bookings_customer_when_booked CHECK (
        (customer_name IS NULL) = (customer_email IS NULL)
        AND (customer_name IS NOT NULL OR status IN ('held', 'cancelled', 'expired'))),
    CONSTRAINT bookings_customer_lengths CHECK (
        char_length(customer_name) BETWEEN 1 AND 200 AND char_length(customer_email) BETWEEN 3 AND 254
        AND char_length(customer_phone) BETWEEN 1 AND 40),
    CONSTRAINT bookings_metadata_object CHECK (json_typeof(metadata) = 'object'),
    CONSTRAINT bookings_key_with_fingerprint CHECK (idempotency_key IS NULL OR fingerprint IS NOT NULL),
    CONSTRAINT bookings_key_length CHECK (char_length(idempotency_key) BETWEEN 1 AND 255)
);
-- Layer 3 (S1-4): two live bookings on one exclusive slot cannot be stored.
CREATE UNIQUE INDEX bookings_one_live_on_exclusive_slot ON bookings (slot_id)
    WHERE exclusive AND status IN ('held', 'pending_payment', 'confirmed');
-- One booking per key and venue, whatever two racing requests believed.
CREATE UNIQUE INDEX bookings_one_per_idempotency_key ON bookings (venue_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX bookings_by_slot ON bookings (slot_id, created_at);            -- operators: who is in this slot
CREATE INDEX bookings_by_venue ON bookings (venue_id, created_at, id);      -- operators: GET /v1/bookings, keyset pages
CREATE INDEX bookings_by_time ON bookings (created_at, id);                 -- the same, of all venues
CREATE INDEX bookings_by_deadline ON bookings (expires_at)                  -- the expiry sweep
    WHERE status IN ('held', 'pending_payment');
CREATE INDEX bookings_unresolved_by_slot ON bookings (slot_id, expires_at)  -- expiry inside a claim, may_free_at
    WHERE status IN ('held', 'pending_payment');

-- Layer 3 for persons and places: a row per occupied slot, kept by the trigger on bookings. Two occupied slots of one
-- resource cannot overlap in any committed state. (int8range is the equality that GiST can index without an extension.)
CREATE TABLE occupied (
    slot_id     uuid      NOT NULL CONSTRAINT occupied_pkey PRIMARY KEY
                          CONSTRAINT occupied_by_a_slot REFERENCES slots (id),
    resource_no bigint    NOT NULL,
    during      tstzrange NOT NULL,
    CONSTRAINT occupied_one_thing_at_a_time
        EXCLUDE USING gist (int8range(resource_no, resource_no, '[]') WITH &&, during WITH &&)
);

-- What happened, written in the transaction that did it: the audit log, and the source of everything told to others.
CREATE TABLE events (
    seq        bigint      NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT events_pkey PRIMARY KEY,
    xid        xid8        NOT NULL DEFAULT pg_current_xact_id(),  -- readers wait for older transactions, see below
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    type       text        NOT NULL,
    actor      text        NOT NULL,
    request_id text,                                         -- null: not caused by a request
    venue_id   uuid,                                         -- null: concerns no venue
    slot_id    uuid,                                         -- null: concerns no slot
    booking_id uuid,                                         -- null: concerns no booking
    data       jsonb       NOT NULL DEFAULT '{}',
    CONSTRAINT events_type_form CHECK (type ~ '^[a-z_]{1,40}\.[a-z_]{1,40}$'),
    CONSTRAINT events_actor_known CHECK (actor IN ('customer', 'operator', 'system')),
    CONSTRAINT events_data_object CHECK (jsonb_typeof(data) = 'object')
);
-- `seq` is given out before COMMIT: a later number may become visible first. Who follows the log therefore reads in
-- the order (xid, seq) and only below the oldest running transaction, where nothing can appear any more.
CREATE INDEX events_in_commit_order ON events (xid, seq);
CREATE INDEX events_by_type ON events (type, seq);                                         -- GET /v1/events
CREATE INDEX events_by_slot ON events (slot_id, seq) WHERE slot_id IS NOT NULL;            -- holds why, GET /v1/events
CREATE INDEX events_by_booking ON events (booking_id, seq) WHERE booking_id IS NOT NULL;   -- GET /v1/events
CREATE INDEX events_by_time ON events (at, seq);                                           -- repair after an outage

-- The first answers to operators' and other keyed requests whose record is no booking, so that a retry gets them again.
CREATE TABLE answers (
    scope           text        NOT NULL,
    idempotency_key text        NOT NULL,
    fingerprint     bytea       NOT NULL,
    status          integer     NOT NULL,
    body            bytea       NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT answers_pkey PRIMARY KEY (scope, idempotency_key),
    CONSTRAINT answers_are_successes CHECK (status BETWEEN 200 AND 299)  -- a refusal stores nothing
);
CREATE INDEX answers_by_time ON answers (created_at);  -- forgotten in this order

-- Attempts whose COMMIT reply was lost and that must not take effect any more: see `abandon_attempt`.
CREATE TABLE abandoned_attempts (
    attempt uuid        NOT NULL CONSTRAINT abandoned_attempts_pkey PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The counts. Statement-level, so that a batch of bookings costs one update per slot.

-- Take places from slots (or give them back, when negative), and keep what persons and places are occupied with.
CREATE FUNCTION take_places(slot_ids uuid[], quantities bigint[]) RETURNS void LANGUAGE plpgsql AS $$
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
        SELECT id, resource_no, tstzrange(starts_at, ends_at) FROM slots WHERE id = ANY (now_occupied)
        ON CONFLICT (slot_id) DO NOTHING;  -- several bookings share one class
    END IF;
    IF now_free IS NOT NULL THEN
        DELETE FROM occupied WHERE slot_id = ANY (now_free);
    END IF;
END $$;

CREATE FUNCTION bookings_keep_available_count() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    slot_ids   uuid[];
    quantities bigint[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(slot_id), array_agg(taken) INTO slot_ids, quantities FROM (
            SELECT slot_id, sum(quantity) AS taken FROM new_rows
            WHERE status IN ('held', 'pending_payment', 'confirmed') GROUP BY slot_id) AS deltas;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT array_agg(slot_id), array_agg(taken) INTO slot_ids, quantities FROM (
            SELECT slot_id, -sum(quantity) AS taken FROM old_rows
            WHERE status IN ('held', 'pending_payment', 'confirmed') GROUP BY slot_id) AS deltas;
    ELSE
        SELECT array_agg(slot_id), array_agg(taken) INTO slot_ids, quantities FROM (
            SELECT slot_id, sum(quantity) AS taken FROM (
                SELECT slot_id, quantity FROM new_rows WHERE status IN ('held', 'pending_payment', 'confirmed')
                UNION ALL
                SELECT slot_id, -quantity FROM old_rows WHERE status IN ('held', 'pending_payment', 'confirmed')
            ) AS rows_both GROUP BY slot_id HAVING sum(quantity) <> 0) AS deltas;
    END IF;
    IF slot_ids IS NOT NULL THEN
        PERFORM take_places(slot_ids, quantities);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER bookings_inserted AFTER INSERT ON bookings REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION bookings_keep_available_count();
CREATE TRIGGER bookings_updated AFTER UPDATE ON bookings REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION bookings_keep_available_count();
CREATE TRIGGER bookings_deleted AFTER DELETE ON bookings REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION bookings_keep_available_count();

-- A slot begins empty, whoever inserts it and with whatever count.
CREATE FUNCTION slots_begin_empty() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.available_count := NEW.capacity;
    NEW.exclusive := NEW.capacity = 1;
    NEW.version := 1;
    RETURN NEW;
END $$;
CREATE TRIGGER slots_begin_empty BEFORE INSERT ON slots FOR EACH ROW EXECUTE FUNCTION slots_begin_empty();

-- People and programs change capacity and status; the count follows, and the mirror hears of it by the version.
CREATE FUNCTION slots_guard_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.available_count <> OLD.available_count THEN
        RAISE EXCEPTION 'available_count is kept by the bookings; change those, or the capacity'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'slots_available_count_is_derived';
    END IF;
    IF (NEW.id, NEW.venue_id, NEW.resource_id, NEW.starts_at, NEW.ends_at)
        IS DISTINCT FROM (OLD.id, OLD.venue_id, OLD.resource_id, OLD.starts_at, OLD.ends_at) THEN
        RAISE EXCEPTION 'a slot never moves; make another one'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'slots_never_move';
    END IF;
    NEW.available_count := OLD.available_count + NEW.capacity - OLD.capacity;
    NEW.exclusive := NEW.capacity = 1;
    NEW.version := OLD.version + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER slots_guard_changes BEFORE UPDATE ON slots FOR EACH ROW
    WHEN (pg_trigger_depth() = 0)  -- the trigger on bookings writes the count itself
    EXECUTE FUNCTION slots_guard_changes();

-- ---------------------------------------------------------------------------------------------------------------------
-- The state machine, and the log nobody rewrites.

CREATE FUNCTION bookings_follow_transitions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (CASE OLD.status
        WHEN 'held'            THEN NEW.status IN ('pending_payment', 'confirmed', 'cancelled', 'expired')
        WHEN 'pending_payment' THEN NEW.status IN ('confirmed', 'cancelled', 'expired')
        WHEN 'confirmed'       THEN NEW.status = 'cancelled'
        ELSE false END)
    THEN
        RAISE EXCEPTION 'a booking does not go from % to %', OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'bookings_transitions_allowed';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER bookings_follow_transitions BEFORE UPDATE OF status ON bookings FOR EACH ROW
    WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION bookings_follow_transitions();

CREATE FUNCTION refuse_statement() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is not allowed on %', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege', CONSTRAINT = TG_NAME;
END $$;
CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_statement();
CREATE TRIGGER bookings_never_truncated BEFORE TRUNCATE ON bookings  -- TRUNCATE would skip the counting trigger
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_statement();
-- The exclusion constraint sees only the rows that are there: one taken away by hand would let a person be booked twice.
CREATE TRIGGER occupied_kept_by_bookings BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON occupied FOR EACH STATEMENT
    WHEN (pg_trigger_depth() = 0)  -- the trigger on bookings writes it
    EXECUTE FUNCTION refuse_statement();

-- ---------------------------------------------------------------------------------------------------------------------
-- Expiry is a change of state (design 8): a WHERE clause could not give the places back.

-- End the lapsed holds of one slot, whose row the caller has locked. Returns how many places came back.
-- Rows that wait for payment are not touched: their Stripe session must be dead first. Who has decided by a clock that
-- other holds of the slot still live gives that clock: one that lapses a moment later is not ended under its decision.
CREATE FUNCTION expire_lapsed_holds(lapsed_slot uuid, clock timestamptz DEFAULT clock_timestamp()) RETURNS bigint
LANGUAGE sql AS $$
    WITH expired AS (
        UPDATE bookings SET status = 'expired', expires_at = NULL, expired_at = clock_timestamp()
        WHERE slot_id = lapsed_slot AND status = 'held' AND expires_at <= clock
        RETURNING id, venue_id, slot_id, quantity
    ), logged AS (
        INSERT INTO events (type, actor, venue_id, slot_id, booking_id, data)
        SELECT 'hold.expired', 'system', venue_id, slot_id, id, jsonb_build_object('quantity', quantity) FROM expired
    )
    SELECT coalesce(sum(quantity), 0)::bigint FROM expired;
$$;

-- The other slots that occupy a person or place at the time of this one. Asked as the exclusion constraint is written,
-- so that its index answers.
CREATE FUNCTION occupied_elsewhere(this_slot uuid, this_resource bigint, meanwhile tstzrange) RETURNS SETOF uuid
LANGUAGE sql STABLE AS $$
    SELECT slot_id FROM occupied
    WHERE int8range(resource_no, resource_no, '[]') && int8range(this_resource, this_resource, '[]')
      AND during && meanwhile AND slot_id <> this_slot
$$;

-- ---------------------------------------------------------------------------------------------------------------------
-- Layer 2: decide a list of requests in one transaction, each on its own merits, first come first served.

-- The list as a table; a field that a request does not have is null.
CREATE FUNCTION booking_requests(requests jsonb)
RETURNS TABLE (id uuid, slot_id uuid, venue_id uuid, quantity integer, status text, ttl_ms bigint,
               hold_deadline timestamptz, key text, fingerprint text, repeat boolean, name text, email text, phone text,
               metadata text, manage_hash text, actor text, request_id text, n bigint)
LANGUAGE sql STABLE AS $$
    SELECT * FROM ROWS FROM (jsonb_to_recordset(requests) AS (
        id uuid, slot_id uuid, venue_id uuid, quantity integer, status text, ttl_ms bigint,
        hold_deadline timestamptz, key text, fingerprint text, repeat boolean, name text, email text, phone text,
        metadata text, manage_hash text, actor text, request_id text)) WITH ORDINALITY
$$;

-- requests: [{"id", "slot_id", "venue_id", "quantity", "status": "confirmed" | "held", "ttl_ms" (held),
--   "hold_deadline" (confirm a hold that only its token remembers), "key", "fingerprint" (hex), "repeat" (true when
--   this very request may have been committed before), "name", "email", "phone", "metadata" (JSON text), "manage_hash" (hex),
--   "actor", "request_id"}, …]
-- Returns a row for each, in the same order, with one word:
--   booked      done now; for a "held" request: held
--   replayed    an earlier request with this id (and key) did it; nothing was changed
--   mismatch    the key, or the id made from it, was used for another request
--   resolved    the hold or booking of this id ended, or was confirmed, before
--   lapsed      the deadline of the hold has passed
--   not_found, closed, past, too_many (more than the capacity), full (the counts say why),
--   occupied    the person or place does something else at that time
-- and the slot's counts after the whole list; `available_after` is the count after this one request.
-- A refusal is a result: nothing is raised, so the others of the list keep theirs. A violated constraint (layer 3) is
-- raised: it can only mean that this function is wrong, or that two lists carried one key.
CREATE FUNCTION commit_bookings(this_attempt uuid, requests jsonb)
RETURNS TABLE (n bigint, word text, at timestamptz, available_after integer, created_at timestamptz,
               deadline timestamptz, may_free_at timestamptz, slot_id uuid, resource_id uuid, capacity integer,
               available_count integer, version bigint, is_open boolean, starts_at timestamptz, ends_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    r        record;
    other_slot uuid;
    slot_now uuid;                    -- the slot whose places are being given out
    room     bigint;                  -- and how many are left of them, those of this list already taken off
    decided  text;
    words    text[] := '{}';
    rooms    integer[] := '{}';
    ns       bigint[] := '{}';
    slot_ids uuid[] := '{}';
    inserts  bigint[] := '{}';
    confirms bigint[] := '{}';
    clock    timestamptz;
BEGIN
    -- The lock comes before every read, in id order, and before the inserts: their foreign key takes a share of it.
    PERFORM FROM slots WHERE id IN (SELECT (q ->> 'slot_id')::uuid FROM jsonb_array_elements(requests) AS q)
        ORDER BY id FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM abandoned_attempts WHERE attempt = this_attempt) THEN
        RAISE EXCEPTION 'this attempt was abandoned' USING ERRCODE = 'query_canceled';
    END IF;
    clock := clock_timestamp();

    FOR r IN
        SELECT q.n, q.id, q.slot_id, q.quantity, q.status, q.hold_deadline, q.key, q.repeat,
               decode(q.fingerprint, 'hex') AS fingerprint,
               s.id AS found, s.capacity, s.status AS slot_status, s.starts_at, s.ends_at,
               s.one_at_a_time, s.resource_no,
               mine.slot_id AS my_slot, mine.quantity AS my_quantity, mine.status AS my_status,
               mine.expires_at AS my_deadline, mine.idempotency_key AS my_key, mine.fingerprint AS my_fingerprint,
               keyed.id AS keyed_id
        FROM booking_requests(requests) AS q
        LEFT JOIN slots AS s ON s.id = q.slot_id AND s.venue_id = q.venue_id
        LEFT JOIN bookings AS mine ON mine.id = q.id
        LEFT JOIN bookings AS keyed ON keyed.venue_id = q.venue_id AND keyed.idempotency_key = q.key
        ORDER BY q.slot_id, q.n
    LOOP
        IF r.slot_id IS DISTINCT FROM slot_now THEN
            slot_now := r.slot_id;
            -- Read again: a request before it in the list may have ended lapsed holds of this slot, see below.
            room := (SELECT s.available_count FROM slots AS s WHERE s.id = r.found);
        END IF;

        decided := CASE
            WHEN (r.my_key = r.key OR r.repeat) AND r.my_fingerprint = r.fingerprint THEN 'replayed'
            WHEN r.my_key = r.key OR r.keyed_id <> r.id THEN 'mismatch'
            WHEN r.my_status IS NOT NULL AND (r.my_slot <> r.slot_id OR r.my_quantity <> r.quantity) THEN 'mismatch'
            WHEN r.my_status = 'held' AND r.my_deadline <= clock THEN 'lapsed'
            WHEN r.my_status = 'held' AND r.status = 'held' THEN 'replayed'
            WHEN r.my_status = 'expired' THEN 'lapsed'
            WHEN r.my_status <> 'held' THEN 'resolved'
            WHEN r.found IS NULL THEN 'not_found'
            WHEN r.slot_status = 'closed' THEN 'closed'
            WHEN r.starts_at <= clock THEN 'past'
            WHEN r.my_status = 'held' THEN 'confirm'
            WHEN r.hold_deadline <= clock THEN 'lapsed'
            WHEN r.quantity > r.capacity THEN 'too_many'
            WHEN r.quantity <= room THEN 'book'
        END;
        IF decided IS NULL THEN  -- full, unless somebody let a hold lapse
            room := room + expire_lapsed_holds(r.slot_id, clock);
            decided := CASE WHEN r.quantity <= room THEN 'book' ELSE 'full' END;
        END IF;
        -- Another slot of this person or place may be occupied. Two such commits racing are told apart by the
        -- exclusion constraint; this look only saves the one that comes later from meeting it.
        IF decided = 'book' AND r.one_at_a_time
            AND EXISTS (SELECT FROM occupied_elsewhere(r.slot_id, r.resource_no, tstzrange(r.starts_at, r.ends_at)))
        THEN
            -- … unless only by holds that somebody let lapse. Their slots come out of the order of locks, so this one
            -- never waits: a slot that is locked counts as occupied.
            FOR other_slot IN
                SELECT s.id FROM slots AS s
                WHERE s.id IN (
                        SELECT occupied_elsewhere(r.slot_id, r.resource_no, tstzrange(r.starts_at, r.ends_at)))
                    AND EXISTS (SELECT FROM bookings AS b
                        WHERE b.slot_id = s.id AND b.status = 'held' AND b.expires_at <= clock)
                ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
            LOOP
                PERFORM expire_lapsed_holds(other_slot, clock);
            END LOOP;
            IF EXISTS (SELECT FROM occupied_elsewhere(r.slot_id, r.resource_no, tstzrange(r.starts_at, r.ends_at)))
            THEN
                decided := 'occupied';
            END IF;
        END IF;

        IF decided = 'book' THEN
            room := room - r.quantity;
            inserts := inserts || r.n;
        ELSIF decided = 'confirm' THEN
            confirms := confirms || r.n;
        END IF;
        ns := ns || r.n;
        words := words || CASE WHEN decided IN ('book', 'confirm') THEN 'booked' ELSE decided END;
        rooms := rooms || room::integer;
        slot_ids := slot_ids || r.slot_id;
    END LOOP;

    IF cardinality(inserts) > 0 THEN
        INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, expires_at, customer_name,
            customer_email, customer_phone, metadata, idempotency_key, fingerprint, manage_token_hash, available_after,
            created_at, confirmed_at)
        SELECT q.id, q.venue_id, q.slot_id, s.exclusive, q.quantity, q.status,
            CASE WHEN q.status = 'held' THEN clock + q.ttl_ms * interval '1 millisecond' END,
            q.name, q.email, q.phone, coalesce(q.metadata, '{}')::json, q.key, decode(q.fingerprint, 'hex'),
            decode(q.manage_hash, 'hex'), d.available_after, clock, CASE WHEN q.status = 'confirmed' THEN clock END
        FROM booking_requests(requests) AS q
        JOIN unnest(ns, rooms) AS d (n, available_after) ON d.n = q.n
        JOIN slots AS s ON s.id = q.slot_id
        WHERE q.n = ANY (inserts);
    END IF;
    IF cardinality(confirms) > 0 THEN
        UPDATE bookings AS b
        SET status = 'confirmed', expires_at = NULL, confirmed_at = clock, customer_name = q.name,
            customer_email = q.email, customer_phone = q.phone, metadata = coalesce(q.metadata, '{}')::json,
            idempotency_key = q.key, fingerprint = decode(q.fingerprint, 'hex'),
            manage_token_hash = decode(q.manage_hash, 'hex'), available_after = d.available_after
        FROM booking_requests(requests) AS q JOIN unnest(ns, rooms) AS d (n, available_after) ON d.n = q.n
        WHERE q.n = ANY (confirms) AND b.id = q.id AND b.status = 'held';
    END IF;
    IF cardinality(inserts) + cardinality(confirms) > 0 THEN
        INSERT INTO events (type, actor, request_id, venue_id, slot_id, booking_id, data)
        SELECT CASE q.status WHEN 'held' THEN 'hold.created' ELSE 'booking.confirmed' END, q.actor, q.request_id,
            q.venue_id, q.slot_id, q.id, jsonb_build_object('quantity', q.quantity)
        FROM booking_requests(requests) AS q WHERE q.n = ANY (inserts) OR q.n = ANY (confirms) ORDER BY q.n;
    END IF;

    RETURN QUERY
        SELECT d.n, d.word, clock, d.available_after, b.created_at, b.expires_at,
            CASE WHEN d.word = 'full' THEN (
                SELECT min(w.expires_at) FROM bookings AS w
                WHERE w.slot_id = d.slot_id AND w.status IN ('held', 'pending_payment')) END,
            d.slot_id, s.resource_id, s.capacity, s.available_count, s.version, s.status = 'open', s.starts_at,
            s.ends_at
        FROM unnest(ns, words, rooms, slot_ids) AS d (n, word, available_after, slot_id)
        LEFT JOIN slots AS s ON s.id = d.slot_id
        LEFT JOIN bookings AS b ON b.id = (requests -> (d.n - 1)::integer ->> 'id')::uuid
        ORDER BY d.n;
END $$;

-- Make sure that an attempt whose reply was lost never takes effect from now on. It has either committed before this
-- returns (the lock below waits for it), or will find itself abandoned when it gets the lock. Then its requests can be
-- repeated, and whatever that answers is final. Works through a pooler, and for a backend that is merely asleep.
CREATE FUNCTION abandon_attempt(dead_attempt uuid, slot_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM slots WHERE id = ANY (slot_ids) ORDER BY id FOR NO KEY UPDATE;
    INSERT INTO abandoned_attempts (attempt) VALUES (dead_attempt) ON CONFLICT DO NOTHING;
    DELETE FROM abandoned_attempts WHERE at < clock_timestamp() - interval '1 day';
END $$;

-- Cancel once and give the places back. `word`: cancelled (now), already (before; the same answer again), begun (too
-- late for a customer), expired, not_found; `only_held` ends a hold and leaves what became of it alone: resolved.
CREATE FUNCTION cancel_booking(this_booking uuid, only_held boolean, by_actor text, by_request text)
RETURNS TABLE (word text, cancelled_at timestamptz, slot_id uuid, resource_id uuid, capacity integer, available_count integer, version bigint,
               is_open boolean, starts_at timestamptz, ends_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    this_slot uuid := (SELECT b.slot_id FROM bookings AS b WHERE b.id = this_booking);
    slot      record;
    booking   record;
BEGIN
    -- Slot before booking, as everywhere: the trigger will want the slot's row.
    SELECT s.starts_at INTO slot FROM slots AS s WHERE s.id = this_slot FOR NO KEY UPDATE;
    SELECT b.status, b.quantity, b.venue_id INTO booking FROM bookings AS b WHERE b.id = this_booking FOR UPDATE;
    word := CASE
        WHEN booking.status IS NULL THEN 'not_found'
        WHEN only_held AND booking.status <> 'held' THEN 'resolved'
        WHEN booking.status = 'cancelled' THEN 'already'
        WHEN booking.status = 'expired' THEN 'expired'
        WHEN by_actor = 'customer' AND slot.starts_at <= clock_timestamp() THEN 'begun'
        ELSE 'cancelled' END;
    IF word = 'cancelled' THEN
        UPDATE bookings SET status = 'cancelled', cancelled_at = clock_timestamp(), expires_at = NULL
        WHERE id = this_booking;
        INSERT INTO events (type, actor, request_id, venue_id, slot_id, booking_id, data)
        VALUES (CASE booking.status WHEN 'held' THEN 'hold.released' ELSE 'booking.cancelled' END, by_actor,
            by_request, booking.venue_id, this_slot, this_booking, jsonb_build_object('quantity', booking.quantity));
    END IF;
    RETURN QUERY
        SELECT word, (SELECT b.cancelled_at FROM bookings AS b WHERE b.id = this_booking), s.id, s.resource_id, s.capacity, s.available_count, s.version, s.status = 'open', s.starts_at,
            s.ends_at
        FROM (SELECT) AS always LEFT JOIN slots AS s ON s.id = this_slot;
END $$;

-- The sweep: end the lapsed holds of at most `batch` slots, those that wait longest first, and return those slots.
-- Locked slots wait for the next round, and do not count: however many of them lapsed, the others get their turn.
CREATE FUNCTION sweep_lapsed_holds(batch integer) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
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
        RETURN NEXT lapsed_slot;
    END LOOP;
END $$;
