-- Calendars that can be subscribed to: one feed per venue and one per person, place or event of it. Whoever knows the
-- secret in a feed's address may read it, and nobody can read the secret here (`app/calendars/feeds.py`).

CREATE TABLE calendar_feeds (
    id          uuid        NOT NULL CONSTRAINT calendar_feeds_pkey PRIMARY KEY,
    venue_id    uuid        NOT NULL CONSTRAINT calendar_feeds_of_a_venue REFERENCES venues (id),
    resource_id uuid,                                        -- null: the whole venue
    secret_hash bytea,                                       -- SHA-256; null: removed
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    rotated_at  timestamptz,                                 -- null: the secret is the first one
    removed_at  timestamptz,                                 -- null: not removed. Kept, so that a retry learns of it
    CONSTRAINT calendar_feeds_of_a_resource FOREIGN KEY (resource_id, venue_id) REFERENCES resources (id, venue_id),
    -- Finds the feed of a secret. Two with the same secret cannot be: 192 bits.
    CONSTRAINT calendar_feeds_secret_unique UNIQUE (secret_hash),
    CONSTRAINT calendar_feeds_secret_hash_length CHECK (octet_length(secret_hash) = 32),
    CONSTRAINT calendar_feeds_secret_until_removed CHECK ((secret_hash IS NULL) = (removed_at IS NOT NULL))
);
-- One feed per calendar: what is rotated has no second address left.
CREATE UNIQUE INDEX calendar_feeds_one_per_resource ON calendar_feeds (resource_id) WHERE removed_at IS NULL;
CREATE UNIQUE INDEX calendar_feeds_one_per_venue ON calendar_feeds (venue_id)
    WHERE resource_id IS NULL AND removed_at IS NULL;
CREATE INDEX calendar_feeds_by_venue ON calendar_feeds (venue_id, created_at, id) WHERE removed_at IS NULL;  -- the list
