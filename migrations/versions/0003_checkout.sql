-- Checkout: paid means booked, or refunded exactly once. `payments` has a row per Stripe session; every change of money
-- and places that belong together is one function below, and so one transaction. No function here calls anybody.

ALTER TABLE venues
    -- A customer who cancels later than so many hours before the start gets nothing back; 0: always all of it.
    ADD COLUMN refund_hours integer NOT NULL DEFAULT 0
        CONSTRAINT venues_refund_hours_range CHECK (refund_hours BETWEEN 0 AND 8760),
    -- Where a customer may be sent after paying; null: any https page.
    ADD COLUMN return_origins text[]
        CONSTRAINT venues_return_origins_few CHECK (cardinality(return_origins) <= 20);

-- One attempt to be paid, and the Stripe session that it became. `params` are written before Stripe is first called, so
-- that every repetition under the same key (this id) is the same request word for word (reliability.md T-21).
CREATE TABLE payments (
    id              uuid        NOT NULL CONSTRAINT payments_pkey PRIMARY KEY,
    venue_id        uuid        NOT NULL CONSTRAINT payments_of_a_venue REFERENCES venues (id),
    slot_id         uuid        NOT NULL CONSTRAINT payments_for_a_slot REFERENCES slots (id),
    booking_id      uuid,                                    -- no foreign key: a failed checkout leaves no booking
    rebooked_id     uuid,                                    -- paid too late, and booked again under this id
    quantity        integer     NOT NULL,
    amount          bigint      NOT NULL,                    -- minor units, of all places together
    currency        text        NOT NULL,
    status          text        NOT NULL DEFAULT 'creating',
    params          json,                                    -- null: made by an older system, or needed no more
    expires_at      timestamptz,                             -- of the booking, as it was told; null: of an older system
    session_id      text,                                    -- null until Stripe has answered
    session_url     text,
    payment_intent  text,
    paid_amount     bigint,                                  -- what was charged: another amount only when mismatched
    refund_status   text        NOT NULL DEFAULT 'none',
    refund_reason   text,
    owed_at         timestamptz,                             -- since when it is to go back
    refunded_amount bigint      NOT NULL DEFAULT 0,          -- the sum of its `refunds` that have not failed
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    asked_at        timestamptz NOT NULL DEFAULT clock_timestamp(),  -- when Stripe was last asked how it stands
    paid_at         timestamptz,
    refunded_at     timestamptz,
    CONSTRAINT payments_session_unique UNIQUE (session_id),
    -- creating: Stripe is being called. open: can be paid. closing: shall be expired, its booking was cancelled.
    -- abandoned: the customer was told that it failed, but the session may exist. failed, expired: can never be paid.
    -- mismatched: paid, but not what was asked: an operator decides.
    CONSTRAINT payments_status_known CHECK (
        status IN ('creating', 'open', 'closing', 'abandoned', 'failed', 'expired', 'paid', 'mismatched')),
    CONSTRAINT payments_refund_status_known CHECK (refund_status IN ('none', 'due', 'waived', 'done', 'failed')),
    CONSTRAINT payments_refund_of_what_was_paid
        CHECK (refund_status = 'none' AND refunded_amount = 0 OR status IN ('paid', 'mismatched')),
    CONSTRAINT payments_paid_at_when_paid CHECK ((status IN ('paid', 'mismatched')) = (paid_at IS NOT NULL)),
    CONSTRAINT payments_paid_amount_when_paid CHECK ((paid_at IS NULL) = (paid_amount IS NULL)),
    CONSTRAINT payments_paid_amount_is_what_was_asked CHECK (status <> 'paid' OR paid_amount = amount),
    CONSTRAINT payments_refunded_at_when_done CHECK ((refund_status = 'done') = (refunded_at IS NOT NULL)),
    CONSTRAINT payments_refunded_when_done CHECK (refund_status <> 'done' OR refunded_amount >= paid_amount),
    CONSTRAINT payments_session_when_open CHECK (status NOT IN ('open', 'paid', 'mismatched') OR session_id IS NOT NULL),
    CONSTRAINT payments_amount_range CHECK (amount BETWEEN 0 AND 100000000000000 AND refunded_amount >= 0),
    CONSTRAINT payments_quantity_range CHECK (quantity BETWEEN 1 AND 100000),
    CONSTRAINT payments_currency_form CHECK (currency ~ '^[A-Z]{3}$')
);
-- Two payments that are alive or kept would charge one booking twice.
CREATE UNIQUE INDEX payments_one_per_booking ON payments (booking_id)
    WHERE status IN ('creating', 'open', 'closing', 'expired', 'paid');
CREATE INDEX payments_by_booking ON payments (booking_id);
CREATE INDEX payments_by_rebooked ON payments (rebooked_id) WHERE rebooked_id IS NOT NULL;
CREATE INDEX payments_by_intent ON payments (payment_intent) WHERE payment_intent IS NOT NULL;  -- charge.refunded
CREATE INDEX payments_unfinished ON payments (asked_at) WHERE status IN ('creating', 'open', 'closing', 'abandoned');
CREATE INDEX payments_refunds_due ON payments (asked_at) WHERE refund_status = 'due';
CREATE INDEX payments_refunds_done ON payments (refunded_at) WHERE refund_status = 'done';       -- may still fail
CREATE INDEX payments_by_time ON payments (created_at);                                         -- operators' list
CREATE INDEX payments_with_params ON payments (created_at) WHERE params IS NOT NULL;            -- forgotten in this order

-- What went back of a payment: a row for each refund at Stripe, whoever asked for it, and one for what was given back by
-- hand. Weeks later Stripe may learn that the customer's bank did not take it: then the money is the seller's again.
CREATE TABLE refunds (
    id          text        NOT NULL CONSTRAINT refunds_pkey PRIMARY KEY,
    payment_id  uuid        NOT NULL CONSTRAINT refunds_of_a_payment REFERENCES payments (id),
    amount      bigint      NOT NULL CONSTRAINT refunds_amount_positive CHECK (amount > 0),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    failed_at   timestamptz
);
CREATE INDEX refunds_by_payment ON refunds (payment_id);

-- What Stripe told us, once per event. `applied_at` is written with what the event changed: null means do it again
-- (reliability.md T-27). Only what is needed to act is kept, and the customer of a session that is not ours.
CREATE TABLE webhook_inbox (
    event_id    text        NOT NULL CONSTRAINT webhook_inbox_pkey PRIMARY KEY,
    type        text        NOT NULL,
    object      jsonb       NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    queued_at   timestamptz,
    applied_at  timestamptz,
    outcome     text,
    CONSTRAINT webhook_inbox_outcome_when_applied CHECK ((applied_at IS NULL) = (outcome IS NULL))
);
CREATE INDEX webhook_inbox_waiting ON webhook_inbox (received_at) WHERE queued_at IS NULL;
CREATE INDEX webhook_inbox_by_time ON webhook_inbox (received_at);

-- How far each reader of `events` has come, in commit order. Advanced in the transaction that queued what followed.
CREATE TABLE event_readers (
    name text  NOT NULL CONSTRAINT event_readers_pkey PRIMARY KEY,
    xid  xid8  NOT NULL,
    seq  bigint NOT NULL
);
-- From here on: nobody gets a letter about a booking of last year.
INSERT INTO event_readers (name, xid, seq)
SELECT 'jobs', pg_current_xact_id(), coalesce(max(seq), 0) FROM events;

-- ---------------------------------------------------------------------------------------------------------------------
-- Rules that no caller can get around.

-- Layer 3 for money: what waits for payment is confirmed by a payment and by nothing else.
CREATE FUNCTION bookings_confirmed_when_paid() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM payments AS p WHERE p.booking_id = NEW.id AND p.status = 'paid') THEN
        RAISE EXCEPTION 'booking % is not paid', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'bookings_confirmed_when_paid';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER bookings_confirmed_when_paid BEFORE UPDATE OF status ON bookings FOR EACH ROW
    WHEN (OLD.status = 'pending_payment' AND NEW.status = 'confirmed')
    EXECUTE FUNCTION bookings_confirmed_when_paid();

-- Money goes one way: what is paid stays paid, what was refunded is not refunded again unless Stripe could not do it.
CREATE FUNCTION refunded_so_far(this_payment uuid) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(r.amount), 0)::bigint FROM refunds AS r WHERE r.payment_id = this_payment AND r.failed_at IS NULL
$$;
CREATE FUNCTION payments_follow_transitions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status IN ('paid', 'mismatched') AND NEW.status <> OLD.status
        OR OLD.status IN ('failed', 'expired') AND NEW.status NOT IN (OLD.status, 'paid', 'mismatched')
        OR OLD.refund_status = 'done' AND NEW.refund_status NOT IN ('done', 'failed')
        OR NEW.refunded_amount <> OLD.refunded_amount AND NEW.refunded_amount <> refunded_so_far(NEW.id)
        OR (NEW.amount, NEW.currency, NEW.slot_id, NEW.quantity) <> (OLD.amount, OLD.currency, OLD.slot_id, OLD.quantity)
        OR NEW.session_id IS DISTINCT FROM OLD.session_id AND OLD.session_id IS NOT NULL
    THEN
        RAISE EXCEPTION 'a payment does not go from %/% to %/%', OLD.status, OLD.refund_status, NEW.status, NEW.refund_status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payments_transitions_allowed';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER payments_follow_transitions BEFORE UPDATE ON payments
    FOR EACH ROW EXECUTE FUNCTION payments_follow_transitions();
CREATE TRIGGER payments_never_deleted BEFORE DELETE OR TRUNCATE ON payments
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_statement();

-- A refund happens to a refund but once: it fails, and for good.
CREATE FUNCTION refunds_follow_transitions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.failed_at IS NOT NULL OR (NEW.id, NEW.payment_id, NEW.amount) <> (OLD.id, OLD.payment_id, OLD.amount) THEN
        RAISE EXCEPTION 'a refund only fails, and once'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'refunds_transitions_allowed';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refunds_follow_transitions BEFORE UPDATE ON refunds
    FOR EACH ROW EXECUTE FUNCTION refunds_follow_transitions();
CREATE TRIGGER refunds_never_deleted BEFORE DELETE OR TRUNCATE ON refunds
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_statement();

-- The money query: empty, unless Stripe could not give something back, or nobody does what time asks for (no worker
-- runs, or Stripe is away for long): then it says so until somebody has acted. Every
-- paid session has a confirmed booking or a refund; every booking that was to be paid and is confirmed has its payment,
-- once, and keeps it.
CREATE VIEW money_mismatches AS
    SELECT p.id AS payment_id, b.id AS booking_id, CASE
            WHEN p.status = 'paid' AND p.refund_status = 'none' AND b.status IS DISTINCT FROM 'confirmed'
                THEN 'paid, but neither booked nor refunded'
            WHEN p.refund_status IN ('due', 'done') AND p.refunded_amount >= p.paid_amount AND b.status = 'confirmed'
                THEN 'refunded, but still booked'
            WHEN p.refunded_amount > p.paid_amount THEN 'more given back than was paid' -- by Stripe and by hand, say
            WHEN p.refund_status = 'failed' THEN 'its refund failed'
            WHEN p.status NOT IN ('paid', 'mismatched') THEN 'over for more than an hour, and Stripe not asked what became of it'
            ELSE 'owed for more than an hour, and not given back'
        END AS what
    FROM payments AS p LEFT JOIN bookings AS b ON b.id = coalesce(p.rebooked_id, p.booking_id)
    WHERE p.status = 'paid' AND p.refund_status = 'none' AND b.status IS DISTINCT FROM 'confirmed'
        OR p.refund_status IN ('due', 'done') AND p.refunded_amount >= p.paid_amount AND p.paid_amount > 0
            AND b.status = 'confirmed'
        OR p.refunded_amount > p.paid_amount
        OR p.refund_status = 'failed'
        OR p.refund_status = 'due' AND p.owed_at < clock_timestamp() - interval '1 hour'
        OR p.status IN ('creating', 'open', 'closing', 'abandoned') AND p.expires_at < clock_timestamp() - interval '1 hour'
    UNION ALL
    SELECT NULL, b.id, 'confirmed, but not paid'
    FROM bookings AS b
    WHERE b.status = 'confirmed'
        AND EXISTS (SELECT FROM payments AS p WHERE p.booking_id = b.id  -- of a checkout that failed the id is free again
            AND p.status NOT IN ('failed', 'abandoned'))
        AND NOT EXISTS (SELECT FROM payments AS p WHERE p.booking_id = b.id AND p.status = 'paid')
    UNION ALL
    SELECT NULL, booked.id, 'paid twice'
    FROM (SELECT coalesce(p.rebooked_id, p.booking_id) AS id FROM payments AS p
          WHERE p.status = 'paid' AND p.refund_status = 'none') AS booked
    WHERE booked.id IS NOT NULL
    GROUP BY booked.id HAVING count(*) > 1;

-- ---------------------------------------------------------------------------------------------------------------------
-- Layer 2 with payment: the function of 0002, which now also makes bookings that wait for payment, together with the
-- row of that payment, and keeps a venue that wants to be paid first from being booked without.

ALTER TYPE booking_request ADD ATTRIBUTE payment jsonb;  -- {"id", "amount", "currency", "params" (text)}

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
        SELECT q.ordinality AS n, q.slot_id, q.quantity, q.payment IS NOT NULL AS has_payment, s.id AS found, s.available_count, s.exclusive, s.resource_no,
            tstzrange(s.starts_at, s.ends_at) AS during,
            s.one_at_a_time AND EXISTS (
                SELECT FROM occupied_elsewhere(s.id, s.resource_no, tstzrange(s.starts_at, s.ends_at))) AS is_occupied,
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
                WHEN s.starts_at <= clock THEN 'past'
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


-- ---------------------------------------------------------------------------------------------------------------------
-- What happens to a payment. Each function takes the slot first, then the payment, then the booking; each finds itself
-- done when it is repeated, and returns the slot's counts for the mirror.

CREATE TYPE payment_change AS (
    word text, booking_id uuid, slot_id uuid, resource_id uuid, capacity integer, available_count integer, version bigint,
    is_open boolean, starts_at timestamptz, ends_at timestamptz);

CREATE FUNCTION payment_changed(word text, this_booking uuid, this_slot uuid) RETURNS payment_change LANGUAGE sql AS $$
    SELECT word, this_booking, s.id, s.resource_id, s.capacity, s.available_count, s.version, s.status = 'open',
        s.starts_at, s.ends_at
    FROM (SELECT) AS always LEFT JOIN slots AS s ON s.id = this_slot
$$;

-- Lock a payment, its slot before it.
CREATE FUNCTION lock_payment(this_payment uuid) RETURNS payments LANGUAGE plpgsql AS $$
DECLARE
    locked payments;
BEGIN
    PERFORM FROM slots WHERE id = (SELECT slot_id FROM payments WHERE id = this_payment) FOR NO KEY UPDATE;
    SELECT * INTO locked FROM payments WHERE id = this_payment FOR UPDATE;
    RETURN locked;
END $$;

CREATE FUNCTION log_payment(pay payments, event_type text, by_actor text, details jsonb, about uuid DEFAULT NULL)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO events (type, actor, venue_id, slot_id, booking_id, data)
    VALUES (event_type, by_actor, pay.venue_id, pay.slot_id, coalesce(about, pay.rebooked_id, pay.booking_id),
        jsonb_build_object('payment_id', pay.id, 'session_id', pay.session_id, 'quantity', pay.quantity,
            'amount', pay.amount, 'currency', pay.currency) || details)
$$;

-- Stripe has made the session. `word`: open, or what the payment has become meanwhile.
CREATE FUNCTION open_payment(this_payment uuid, made_session text, made_url text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    pay payments := lock_payment(this_payment);
BEGIN
    IF pay.session_id IS NULL AND pay.status IN ('creating', 'closing', 'abandoned') THEN
        UPDATE payments SET session_id = made_session, session_url = made_url, asked_at = clock_timestamp(),
            status = CASE status WHEN 'creating' THEN 'open' ELSE status END
        WHERE id = this_payment RETURNING * INTO pay;
        IF pay.status = 'open' THEN
            PERFORM log_payment(pay, 'checkout.created', 'customer', jsonb_build_object('slots_reserved', true));
        END IF;
    ELSIF pay.session_id = made_session THEN  -- a webhook, which does not say where to pay, was faster
        UPDATE payments SET session_url = made_url WHERE id = this_payment AND session_url IS NULL;
    END IF;
    RETURN pay.status;
END $$;

-- Stripe made none, or (`maybe`) may have made one that nobody was told of: the customer is told that it failed, the
-- places come back, and the key and the id are free for another try: a refusal stores nothing.
CREATE FUNCTION fail_payment(this_payment uuid, maybe boolean, why text) RETURNS payment_change LANGUAGE plpgsql AS $$
DECLARE
    pay     payments := lock_payment(this_payment);
    details jsonb;
    gone    integer;
BEGIN
    IF pay.status <> 'creating' THEN
        RETURN payment_changed(pay.status, pay.booking_id, pay.slot_id);
    END IF;
    UPDATE payments SET status = CASE WHEN maybe THEN 'abandoned' ELSE 'failed' END WHERE id = this_payment;
    DELETE FROM bookings WHERE id = pay.booking_id AND status = 'pending_payment';
    GET DIAGNOSTICS gone = ROW_COUNT;
    details := jsonb_build_object('slots_rolled_back', gone, 'reason', why);
    PERFORM log_payment(pay, 'checkout.stripe_error', 'system', details);
    PERFORM log_payment(pay, 'checkout.failed', 'system', details);
    RETURN payment_changed('failed', pay.booking_id, pay.slot_id);
END $$;

-- The session can never be paid any more, says Stripe (`as_status`: expired, failed): only now are its places free.
CREATE FUNCTION end_payment(this_payment uuid, as_status text) RETURNS payment_change LANGUAGE plpgsql AS $$
DECLARE
    pay  payments := lock_payment(this_payment);
    gone integer;
BEGIN
    IF pay.status NOT IN ('creating', 'open', 'closing', 'abandoned') THEN
        RETURN payment_changed(pay.status, pay.booking_id, pay.slot_id);
    END IF;
    UPDATE payments SET status = CASE pay.status WHEN 'abandoned' THEN 'failed' ELSE as_status END
    WHERE id = this_payment;
    IF pay.status = 'abandoned' THEN  -- its booking, if there is one of this id, is another attempt's
        RETURN payment_changed('ended', NULL, pay.slot_id);
    END IF;
    UPDATE bookings SET status = 'expired', expires_at = NULL, expired_at = clock_timestamp()
    WHERE id = pay.booking_id AND status = 'pending_payment';
    GET DIAGNOSTICS gone = ROW_COUNT;
    PERFORM log_payment(pay, CASE as_status WHEN 'expired' THEN 'checkout.expired' ELSE 'checkout.failed' END, 'system',
        jsonb_build_object('slots_released', gone));
    IF gone > 0 THEN
        PERFORM log_payment(pay, 'booking.expired', 'system', '{}');
    END IF;
    RETURN payment_changed('ended', pay.booking_id, pay.slot_id);
END $$;

-- Whether a payment that came late can still have its places.
CREATE FUNCTION has_room(this_slot uuid, places integer) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    clock timestamptz := clock_timestamp();
BEGIN
    PERFORM expire_lapsed_holds(this_slot, clock);
    RETURN EXISTS (
        SELECT FROM slots AS s
        WHERE s.id = this_slot AND s.status = 'open' AND s.starts_at > clock AND s.available_count >= places
            AND NOT (s.one_at_a_time AND EXISTS (
                SELECT FROM occupied_elsewhere(s.id, s.resource_no, tstzrange(s.starts_at, s.ends_at)))));
END $$;

-- Book what was paid without its places being kept, if there is room; false: there is none.
CREATE FUNCTION book_paid(this_slot uuid, places integer, new_booking uuid, name text, email text, phone text, details json,
    new_manage_hash bytea)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT has_room(this_slot, places) THEN
        RETURN false;
    END IF;
    INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,
        customer_phone, metadata, manage_token_hash, available_after, confirmed_at)
    SELECT new_booking, s.venue_id, s.id, s.exclusive, places, 'confirmed', name, email, phone, details, new_manage_hash,
        s.available_count - places, clock_timestamp()
    FROM slots AS s WHERE s.id = this_slot;
    RETURN true;
EXCEPTION WHEN exclusion_violation THEN  -- at this moment the person or place was taken for another slot
    RETURN false;
END $$;

-- Owe a payment back. Every penny of it: what a policy keeps is never asked for here.
CREATE FUNCTION owe_refund(pay payments, why text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE payments SET refund_status = CASE WHEN paid_amount > 0 THEN 'due' ELSE 'waived' END, refund_reason = why,
        owed_at = clock_timestamp(), asked_at = clock_timestamp()  -- under another key than a refund that failed
    WHERE id = pay.id;
    PERFORM log_payment(pay, 'refund.due', 'system', jsonb_build_object('reason', why));
END $$;

-- Stripe says that a session was paid, with how much. `word`:
--   confirmed     now, or before
--   rebooked      its places had been freed, and there was still room
--   refund_due    … there was none, or the booking was cancelled meanwhile: the money goes back, once
--   mismatched    another amount or currency than was asked: an operator decides
--   unknown       no such payment
CREATE FUNCTION apply_payment(this_payment uuid, paid_session text, paid_amount bigint, paid_currency text,
    paid_intent text, new_booking uuid, new_manage_hash bytea)
RETURNS payment_change LANGUAGE plpgsql AS $$
DECLARE
    pay     payments := lock_payment(this_payment);
    booking bookings;
BEGIN
    IF pay.id IS NULL OR pay.session_id <> paid_session THEN
        RETURN payment_changed('unknown', NULL, NULL);
    ELSIF pay.status IN ('paid', 'mismatched') THEN
        RETURN payment_changed(CASE WHEN pay.status = 'mismatched' THEN 'mismatched'
            WHEN pay.refund_status <> 'none' THEN 'refund_due' WHEN pay.rebooked_id IS NOT NULL THEN 'rebooked'
            ELSE 'confirmed' END, coalesce(pay.rebooked_id, pay.booking_id), pay.slot_id);
    END IF;
    SELECT * INTO booking FROM bookings
    WHERE id = pay.booking_id AND pay.status NOT IN ('abandoned', 'failed') FOR UPDATE;
    -- Before the booking: it is confirmed by this row.
    UPDATE payments SET session_id = paid_session, payment_intent = paid_intent, paid_at = clock_timestamp(),
        paid_amount = apply_payment.paid_amount,
        booking_id = booking.id,  -- a later attempt may have the id of one that failed
        status = CASE WHEN apply_payment.paid_amount = amount AND paid_currency = currency THEN 'paid'
            ELSE 'mismatched' END
    WHERE id = this_payment RETURNING * INTO pay;

    IF pay.status = 'mismatched' THEN
        PERFORM log_payment(pay, 'payment.mismatched', 'system',
            jsonb_build_object('paid_amount', pay.paid_amount, 'paid_currency', paid_currency));
        RETURN payment_changed('mismatched', pay.booking_id, pay.slot_id);
    ELSIF booking.status = 'pending_payment' THEN
        UPDATE bookings SET status = 'confirmed', expires_at = NULL, confirmed_at = clock_timestamp()
        WHERE id = booking.id;
        -- The places were taken when it became pending: nothing is counted here (S0-7).
        PERFORM log_payment(pay, 'checkout.completed', 'system',
            jsonb_build_object('slots_reserved', true, 'decrement', 'skipped'));
        PERFORM log_payment(pay, 'booking.confirmed', 'system', '{}');
        RETURN payment_changed('confirmed', booking.id, pay.slot_id);
    ELSIF (CASE WHEN booking.status = 'expired' THEN book_paid(pay.slot_id, pay.quantity, new_booking,
        booking.customer_name, booking.customer_email, booking.customer_phone, booking.metadata, new_manage_hash) END)
    THEN
        UPDATE payments SET rebooked_id = new_booking WHERE id = this_payment RETURNING * INTO pay;
        PERFORM log_payment(pay, 'payment.late', 'system',
            jsonb_build_object('outcome', 'rebooked', 'expired_booking_id', booking.id));
        PERFORM log_payment(pay, 'booking.confirmed', 'system', jsonb_build_object('rebooked_from', booking.id));
        RETURN payment_changed('rebooked', new_booking, pay.slot_id);
    END IF;
    PERFORM log_payment(pay, 'payment.late', 'system', jsonb_build_object('outcome', 'refunded'));
    PERFORM owe_refund(pay, CASE booking.status WHEN 'cancelled' THEN 'cancelled before it was paid'
        ELSE 'paid after its places were gone' END);
    RETURN payment_changed('refund_due', booking.id, pay.slot_id);
END $$;

-- A session without slots_reserved, made by an older system, was paid: its places are taken now, or its money goes
-- back (S0-8). `word`: confirmed, refund_due, unknown (no such slot).
CREATE FUNCTION book_legacy_payment(this_payment uuid, paid_session text, paid_amount bigint, paid_currency text,
    paid_intent text, this_slot uuid, places integer, name text, email text, phone text, new_booking uuid,
    new_manage_hash bytea)
RETURNS payment_change LANGUAGE plpgsql AS $$
DECLARE
    slot    slots;
    pay     payments;
    fits    boolean;
BEGIN
    SELECT * INTO slot FROM slots WHERE id = this_slot FOR NO KEY UPDATE;
    SELECT * INTO pay FROM payments WHERE session_id = paid_session;
    IF slot.id IS NULL THEN
        RETURN payment_changed('unknown', NULL, NULL);
    ELSIF pay.id IS NOT NULL THEN
        RETURN payment_changed(CASE pay.refund_status WHEN 'none' THEN 'confirmed' ELSE 'refund_due' END,
            pay.booking_id, pay.slot_id);
    END IF;
    fits := book_paid(this_slot, places, new_booking, name, email, phone, '{}', new_manage_hash);
    INSERT INTO payments (id, venue_id, slot_id, booking_id, quantity, amount, currency, status, session_id,
        payment_intent, paid_amount, paid_at)
    VALUES (this_payment, slot.venue_id, this_slot, CASE WHEN fits THEN new_booking END, places, paid_amount,
        paid_currency, 'paid', paid_session, paid_intent, paid_amount, clock_timestamp())
    RETURNING * INTO pay;
    IF fits THEN
        PERFORM log_payment(pay, 'checkout.completed', 'system',
            jsonb_build_object('slots_reserved', false, 'decrement', 'legacy'));
        PERFORM log_payment(pay, 'booking.confirmed', 'system', jsonb_build_object('legacy', true));
        RETURN payment_changed('confirmed', new_booking, this_slot);
    END IF;
    PERFORM log_payment(pay, 'checkout.completed', 'system',
        jsonb_build_object('slots_reserved', false, 'decrement', 'no room'));
    PERFORM owe_refund(pay, 'no room for an order of the older system');
    RETURN payment_changed('refund_due', NULL, this_slot);
END $$;

-- End the booking whose money went back, where it is by now: it may have moved since it was paid.
CREATE FUNCTION end_refunded_booking(pay payments) RETURNS payment_change LANGUAGE plpgsql AS $$
DECLARE
    ended   bookings;
BEGIN
    UPDATE bookings SET status = 'cancelled', cancelled_at = clock_timestamp(), expires_at = NULL
    WHERE id = coalesce(pay.rebooked_id, pay.booking_id) AND status IN ('confirmed', 'pending_payment')
    RETURNING * INTO ended;
    IF ended.id IS NOT NULL THEN
        pay.slot_id := ended.slot_id;
        PERFORM log_payment(pay, 'booking.cancelled', 'system',
            jsonb_build_object('reason', 'refunded at Stripe', 'quantity', ended.quantity));
    END IF;
    RETURN payment_changed('refunded', ended.id, pay.slot_id);
END $$;

-- What is known of a payment's refunds, `news`: [{"id", "amount", "failed"}, …], because we asked for one, or somebody
-- did in Stripe's Dashboard. What is missing there says nothing: it may be newer, so that old news and new ones come in
-- any order. Who has all of the money back has no booking any more. `word`: refunded, partly, failed (one of them, since
-- the last time), already, unknown.
CREATE FUNCTION record_refunds(this_payment uuid, news jsonb) RETURNS payment_change LANGUAGE plpgsql AS $$
DECLARE
    pay     payments := lock_payment(this_payment);
    failed  bigint;
    total   bigint;
    whole   boolean;
BEGIN
    IF pay.id IS NULL OR pay.status NOT IN ('paid', 'mismatched') THEN
        RETURN payment_changed('unknown', NULL, NULL);
    END IF;
    WITH changed AS (
        INSERT INTO refunds AS known (id, payment_id, amount, failed_at)
        SELECT told.id, this_payment, told.amount, CASE WHEN told.failed THEN clock_timestamp() END
        FROM jsonb_to_recordset(news) AS told (id text, amount bigint, failed boolean)
        ON CONFLICT (id) DO UPDATE SET failed_at = excluded.failed_at
            WHERE known.failed_at IS NULL AND excluded.failed_at IS NOT NULL
        RETURNING amount, failed_at)
    SELECT sum(amount) INTO failed FROM changed WHERE failed_at IS NOT NULL;
    total := refunded_so_far(this_payment);
    whole := total >= pay.paid_amount AND total > 0;
    UPDATE payments SET refunded_amount = total,
        refund_status = CASE WHEN whole THEN 'done' WHEN failed > 0 AND refund_status IN ('due', 'done') THEN 'failed'
            ELSE refund_status END,
        refunded_at = CASE WHEN whole THEN coalesce(refunded_at, clock_timestamp()) END,
        refund_reason = coalesce(refund_reason, CASE WHEN total > 0 THEN 'by the venue, at Stripe' END)
    WHERE id = this_payment;
    IF failed > 0 THEN
        PERFORM log_payment(pay, 'payment.refund_failed', 'system',
            jsonb_build_object('failed_amount', failed, 'refunded_amount', total));
    END IF;
    IF total > pay.refunded_amount THEN
        PERFORM log_payment(pay, 'payment.refunded', 'system',
            jsonb_build_object('refunded_amount', total, 'whole', whole));
        RETURN CASE WHEN whole THEN end_refunded_booking(pay)
            ELSE payment_changed('partly', NULL, pay.slot_id) END;
    END IF;
    RETURN payment_changed(CASE WHEN failed > 0 THEN 'failed' ELSE 'already' END, pay.booking_id, pay.slot_id);
END $$;

-- The function of 0001, which now also knows what becomes of the money: a session that can still be paid shall be
-- closed, and what was paid goes back as the venue's policy says. The venue itself keeps nothing when it cancels.
CREATE OR REPLACE FUNCTION cancel_booking(this_booking uuid, only_held boolean, by_actor text, by_request text)
RETURNS TABLE (word text, cancelled_at timestamptz, slot_id uuid, resource_id uuid, capacity integer,
               available_count integer, version bigint, is_open boolean, starts_at timestamptz, ends_at timestamptz)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    this_slot uuid := (SELECT b.slot_id FROM bookings AS b WHERE b.id = this_booking);
    slot      record;
    booking   record;
    pay       payments;
    notice    interval;
    in_time   boolean;
BEGIN
    -- Slot, payment, booking, as everywhere: the trigger will want the slot's row.
    SELECT s.starts_at INTO slot FROM slots AS s WHERE s.id = this_slot FOR NO KEY UPDATE;
    SELECT * INTO pay FROM payments AS p
    WHERE p.booking_id = this_booking AND p.status IN ('creating', 'open', 'paid', 'mismatched')
        OR p.rebooked_id = this_booking
    FOR UPDATE;
    SELECT b.status, b.quantity, b.venue_id, b.slot_id INTO booking
    FROM bookings AS b WHERE b.id = this_booking FOR UPDATE;
    IF booking.slot_id IS DISTINCT FROM this_slot THEN
        RAISE EXCEPTION 'the booking moved meanwhile' USING ERRCODE = 'serialization_failure';  -- and is tried again
    END IF;
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
    IF word = 'cancelled' AND pay.status IN ('creating', 'open') THEN
        UPDATE payments SET status = 'closing' WHERE id = pay.id;
    ELSIF word = 'cancelled' AND pay.status = 'mismatched' AND pay.refund_status = 'none' THEN
        PERFORM owe_refund(pay, 'cancelled before an operator had decided');  -- nothing was ever confirmed for it
    ELSIF word = 'cancelled' AND pay.status = 'paid' AND pay.refund_status = 'none' THEN
        notice := (SELECT v.refund_hours FROM venues AS v WHERE v.id = pay.venue_id) * interval '1 hour';
        -- Who moves too late to cancel does not get the money back by cancelling the new time.
        in_time := clock_timestamp() <= slot.starts_at - notice AND NOT EXISTS (
            SELECT FROM events AS e JOIN slots AS s ON s.id = e.slot_id
            WHERE e.booking_id = this_booking AND e.type = 'booking.moved_away' AND e.actor = 'customer'
                AND e.at > s.starts_at - notice);
        IF by_actor <> 'customer' OR in_time THEN
            PERFORM owe_refund(pay, CASE by_actor WHEN 'customer' THEN 'cancelled by the customer'
                ELSE 'cancelled by the venue' END);
        ELSE
            UPDATE payments SET refund_status = 'waived', refund_reason = 'cancelled too late for a refund'
            WHERE id = pay.id;
            PERFORM log_payment(pay, 'refund.waived', by_actor, '{}');
        END IF;
    END IF;
    RETURN QUERY
        SELECT word, (SELECT b.cancelled_at FROM bookings AS b WHERE b.id = this_booking), s.id, s.resource_id,
            s.capacity, s.available_count, s.version, s.status = 'open', s.starts_at, s.ends_at
        FROM (SELECT) AS always LEFT JOIN slots AS s ON s.id = this_slot;
END $$;
