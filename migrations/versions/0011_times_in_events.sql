-- Times in the data of new events (the log is never rewritten), as everywhere else on the wire: RFC 3339 in UTC, with Z. Postgres alone writes +00:00.

CREATE FUNCTION wire_time(instant timestamptz) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN replace(to_char(instant AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z');

-- The three functions that log a time, but for that as they were: changed where they stand and not written out again.
DO $$
DECLARE
    change record;
    before text;
    after  text;
BEGIN
    FOR change IN SELECT * FROM (VALUES
        ('apply_schedule', $q$'from', from_at, 'before', before$q$,
            $q$'from', wire_time(from_at), 'before', wire_time(before)$q$),
        ('make_offer', $q$'until', entry.offered_until$q$, $q$'until', wire_time(entry.offered_until)$q$),
        ('block_time', $q$'starts_at', begins, 'ends_at', ends$q$,
            $q$'starts_at', wire_time(begins), 'ends_at', wire_time(ends)$q$)
    ) AS c (function_name, was, is_now)
    LOOP
        before := pg_get_functiondef(change.function_name::regproc);
        after := replace(before, change.was, change.is_now);
        IF after = before THEN
            RAISE EXCEPTION '% logs no such time', change.function_name;
        END IF;
        EXECUTE after;
    END LOOP;
END $$;
