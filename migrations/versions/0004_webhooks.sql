-- Webhooks to the venues' own systems: where they go, and a row for each event that goes to each of them. The rows are
-- the truth; whatever queue carries their ids may lose them (`app/webhooks/deliveries.py`).

CREATE TABLE webhook_endpoints (
    id               uuid        NOT NULL CONSTRAINT webhook_endpoints_pkey PRIMARY KEY,
    venue_id         uuid        NOT NULL CONSTRAINT webhook_endpoints_of_a_venue REFERENCES venues (id),
    url              text        NOT NULL,
    secret           text,                                   -- null: removed. Signatures need it as it is, not a hash
    old_secret       text,                                   -- null: not being rotated. Signs beside the new one …
    old_secret_until timestamptz,                            -- … until then
    types            text[],                                 -- null: every type that is sent at all
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    disabled_at      timestamptz,                            -- null: enabled
    disabled_why     text,
    removed_at       timestamptz,                            -- null: not removed. Kept, because its deliveries name it
    CONSTRAINT webhook_endpoints_url_form CHECK (url ~ '^https?://[!-~]+$' AND char_length(url) <= 2000),
    CONSTRAINT webhook_endpoints_secret_form
        CHECK (secret ~ '^whsec_[A-Za-z0-9+/]{32,88}=*$' AND old_secret ~ '^whsec_[A-Za-z0-9+/]{32,88}=*$'),
    CONSTRAINT webhook_endpoints_secret_until_removed CHECK ((secret IS NULL) = (removed_at IS NOT NULL)),
    CONSTRAINT webhook_endpoints_old_secret_with_its_end CHECK ((old_secret IS NULL) = (old_secret_until IS NULL)),
    CONSTRAINT webhook_endpoints_why_when_disabled CHECK ((disabled_at IS NULL) = (disabled_why IS NULL)),
    CONSTRAINT webhook_endpoints_why_length CHECK (char_length(disabled_why) BETWEEN 1 AND 200),
    CONSTRAINT webhook_endpoints_removed_is_disabled CHECK (removed_at IS NULL OR disabled_at IS NOT NULL),
    CONSTRAINT webhook_endpoints_types_few CHECK (cardinality(types) BETWEEN 1 AND 50)
);
-- Who gets an event; operators' list.
CREATE INDEX webhook_endpoints_by_venue ON webhook_endpoints (venue_id, created_at, id) WHERE removed_at IS NULL;

CREATE TABLE webhook_deliveries (
    id            uuid        NOT NULL CONSTRAINT webhook_deliveries_pkey PRIMARY KEY,  -- also the webhook-id
    endpoint_id   uuid        NOT NULL CONSTRAINT webhook_deliveries_to_an_endpoint REFERENCES webhook_endpoints (id),
    event_seq     bigint      NOT NULL CONSTRAINT webhook_deliveries_of_an_event REFERENCES events (seq),
    status        text        NOT NULL DEFAULT 'pending',
    attempts      integer     NOT NULL DEFAULT 0,            -- begun since it was made, or last asked for by hand
    answer_status integer,                                   -- null: not tried, or no answer to the last attempt
    error         text,                                      -- null: not tried, or delivered
    -- When the next attempt may begin; null when there is none to come. While one is under way: when whoever makes it
    -- is taken for dead.
    next_at       timestamptz DEFAULT clock_timestamp(),
    leased_until  timestamptz,                               -- null: in no worker's hands
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    delivered_at  timestamptz,
    -- However often an event is read from the log, it is sent to an endpoint once.
    CONSTRAINT webhook_deliveries_once_per_event UNIQUE (endpoint_id, event_seq),
    CONSTRAINT webhook_deliveries_status_known CHECK (status IN ('pending', 'delivered', 'dead')),
    CONSTRAINT webhook_deliveries_delivered_at_when_delivered
        CHECK ((status = 'delivered') = (delivered_at IS NOT NULL)),
    CONSTRAINT webhook_deliveries_next_at_while_pending CHECK ((status = 'pending') = (next_at IS NOT NULL)),
    CONSTRAINT webhook_deliveries_leased_while_pending CHECK (leased_until IS NULL OR status = 'pending'),
    CONSTRAINT webhook_deliveries_attempts_range CHECK (attempts BETWEEN 0 AND 1000),
    CONSTRAINT webhook_deliveries_answer_status_range CHECK (answer_status BETWEEN 100 AND 999),
    CONSTRAINT webhook_deliveries_error_length CHECK (char_length(error) BETWEEN 1 AND 200)
);
-- What is handed out next of each endpoint, and how many of it are in hand.
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_at) WHERE status = 'pending';
CREATE INDEX webhook_deliveries_leased ON webhook_deliveries (endpoint_id, leased_until) WHERE leased_until IS NOT NULL;
CREATE INDEX webhook_deliveries_by_endpoint ON webhook_deliveries (endpoint_id, created_at, id);  -- lists of a venue
CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (created_at, id);                   -- lists, forgetting
CREATE INDEX webhook_deliveries_dead ON webhook_deliveries (created_at, id) WHERE status = 'dead';  -- lists of them
