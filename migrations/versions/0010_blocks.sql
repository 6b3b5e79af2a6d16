-- Blocked time: a person or a place cannot be booked for a while. A block is a slot of theirs, never for sale, whose one
-- place it takes. So whatever knows what a person is occupied with knows of blocks without a rule of their own: the
-- exclusion constraint, the functions that book and move, the lists, the mirror and its scripts.

ALTER TABLE slots
    ADD COLUMN is_block boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT slots_blocks_are_never_sold CHECK (NOT is_block OR (status = 'closed' AND capacity = 1
        AND one_at_a_time AND service_id IS NULL AND NOT made_by_schedule));
CREATE INDEX slots_blocks_by_venue ON slots (venue_id, starts_at, id) WHERE is_block;  -- GET /v1/blocks?venue=

-- The place that a block takes is counted as that of a booking is, by a trigger.
CREATE TABLE blocks (
    id         uuid        NOT NULL CONSTRAINT blocks_pkey PRIMARY KEY
                           CONSTRAINT blocks_take_a_slot REFERENCES slots (id),
    reason     text,                                         -- null: nothing to say
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed_at timestamptz,                                  -- null: it keeps the time
    CONSTRAINT blocks_reason_length CHECK (char_length(reason) BETWEEN 1 AND 200)
);

CREATE FUNCTION blocks_keep_occupied() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    this_block uuid := CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END;
    taken      integer := CASE TG_OP WHEN 'DELETE' THEN 0 ELSE (NEW.removed_at IS NULL)::integer END
                        - CASE TG_OP WHEN 'INSERT' THEN 0 ELSE (OLD.removed_at IS NULL)::integer END;
BEGIN
    IF taken <> 0 THEN
        PERFORM take_places(ARRAY[this_block], ARRAY[taken::bigint]);
    END IF;
    IF taken < 0 AND EXISTS (SELECT FROM waiting_entries AS w JOIN slots AS s ON s.venue_id = w.venue_id
        WHERE w.status = 'waiting' AND s.id = this_block)
    THEN
        PERFORM offer_places(this_block, 0, true);  -- nothing of the block itself: what lies around it is free now
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER blocks_keep_occupied AFTER INSERT OR UPDATE OF removed_at OR DELETE ON blocks FOR EACH ROW
    EXECUTE FUNCTION blocks_keep_occupied();
CREATE TRIGGER blocks_never_move BEFORE UPDATE OF id OR TRUNCATE ON blocks  -- either would skip the counting trigger
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_statement();

-- Block the time of a person or place, unless they are occupied in it: one word says what became of it.
--   blocked     now, or by an earlier request with this id, which may have asked for something else
--   not_found   no such resource
--   event       it has no time of its own: it may run several slots at once
--   occupied    by a booking, a hold that Postgres keeps, or another block
-- Two such commits racing, or one with a booking, are told apart by the exclusion constraint, as bookings are.
CREATE FUNCTION block_time(new_block uuid, this_resource uuid, begins timestamptz, ends timestamptz, why text,
    by_actor text, by_request text)
RETURNS text LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    owner     resources;
    meanwhile tstzrange := tstzrange(begins, ends);
    clock     timestamptz := clock_timestamp();
    other     uuid;
BEGIN
    IF EXISTS (SELECT FROM blocks WHERE id = new_block) THEN
        RETURN 'blocked';
    END IF;
    SELECT * INTO owner FROM resources WHERE id = this_resource;
    IF owner.id IS NULL THEN
        RETURN 'not_found';
    ELSIF NOT owner.one_at_a_time THEN
        RETURN 'event';
    END IF;
    -- Holds that somebody let lapse are in nobody's way. A slot that is locked at this moment counts as occupied.
    FOR other IN
        SELECT s.id FROM slots AS s
        WHERE s.id IN (SELECT occupied_elsewhere(new_block, owner.no, meanwhile))
            AND EXISTS (SELECT FROM bookings AS b
                WHERE b.slot_id = s.id AND b.status = 'held' AND b.expires_at <= clock)
        ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        PERFORM expire_lapsed_holds(other, clock);
    END LOOP;
    IF EXISTS (SELECT FROM occupied_elsewhere(new_block, owner.no, meanwhile)) THEN
        RETURN 'occupied';
    END IF;
    INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity, status,
        is_block)
    VALUES (new_block, owner.venue_id, owner.id, owner.no, true, begins, ends, 1, 'closed', true);
    INSERT INTO blocks (id, reason) VALUES (new_block, why);
    INSERT INTO events (type, actor, request_id, venue_id, slot_id, data)
    VALUES ('block.created', by_actor, by_request, owner.venue_id, new_block,
        jsonb_build_object('resource_id', owner.id, 'starts_at', begins, 'ends_at', ends));
    RETURN 'blocked';
END $$;

-- Give blocked time back; null: there never was such a block. A second time changes nothing.
CREATE FUNCTION unblock_time(this_block uuid, by_actor text, by_request text) RETURNS uuid
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM slots WHERE id = this_block AND is_block FOR NO KEY UPDATE;  -- before the block, as everywhere
    UPDATE blocks SET removed_at = clock_timestamp() WHERE id = this_block AND removed_at IS NULL;
    IF FOUND THEN
        INSERT INTO events (type, actor, request_id, venue_id, slot_id, data)
        SELECT 'block.removed', by_actor, by_request, s.venue_id, s.id, jsonb_build_object('resource_id', s.resource_id)
        FROM slots AS s WHERE s.id = this_block;
    END IF;
    RETURN (SELECT b.id FROM blocks AS b WHERE b.id = this_block);
END $$;
