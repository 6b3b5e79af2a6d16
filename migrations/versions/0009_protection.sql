-- Whose pages may use a venue: origins that browsers may call the API from, and that may frame its pages. And how many
-- places one client may hold at once, so that nobody can keep a venue empty by holding all of it.

ALTER TABLE venues
    ADD COLUMN origins text[] NOT NULL DEFAULT '{}'              -- `*`: anybody's. Empty: only our own pages
        CONSTRAINT venues_origins_few CHECK (cardinality(origins) <= 20),
    ADD COLUMN holds_per_client integer                          -- null: the service's default. 0: any number
        CONSTRAINT venues_holds_per_client_range CHECK (holds_per_client BETWEEN 0 AND 100000);

-- What each client holds of a venue while Redis, which counts it otherwise, is away. Each row ends by itself; no promise
-- depends on this table.
CREATE TABLE claims (
    client      text        NOT NULL,  -- a keyed hash of venue and address, from which neither can be told
    id          uuid        NOT NULL,  -- of the hold, and of the booking that it becomes
    places      integer     NOT NULL,
    expires_at  timestamptz NOT NULL,
    CONSTRAINT claims_pkey PRIMARY KEY (client, id),
    CONSTRAINT claims_places_range CHECK (places BETWEEN 1 AND 100000)
);
CREATE INDEX claims_lapsed ON claims (expires_at);

-- Claim places for a client, who may have `most` of them at once; repeated, it prolongs the claim and never makes it
-- smaller. `word` says what became of it: claimed, known (it was there before) or limit. The rest is of the client's
-- other claims, which are in the way: how many places, when the first of them ends, and whose they are. One client's
-- requests take turns.
CREATE FUNCTION claim_places(a_client text, an_id uuid, some_places integer, most integer, life interval,
    OUT word text, OUT held bigint, OUT next_end timestamptz, OUT ids uuid[]) LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz;
    before integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(a_client, 0));
    moment := clock_timestamp();
    DELETE FROM claims WHERE client = a_client AND expires_at <= moment;
    before := (SELECT places FROM claims WHERE client = a_client AND id = an_id);
    SELECT coalesce(sum(places), 0), min(expires_at), coalesce(array_agg(id), '{}') INTO held, next_end, ids
    FROM claims WHERE client = a_client AND id <> an_id;
    IF held + greatest(some_places, before) > most THEN
        word := 'limit';
        RETURN;
    END IF;
    word := CASE WHEN before IS NULL THEN 'claimed' ELSE 'known' END;
    INSERT INTO claims AS known VALUES (a_client, an_id, some_places, moment + life)
    ON CONFLICT (client, id) DO UPDATE
    SET places = greatest(known.places, excluded.places),
        expires_at = greatest(known.expires_at, excluded.expires_at);
END $$;
