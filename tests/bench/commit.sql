-- What pgbench repeats: the service's own commit function, a list of one booking, as the service would send it.
SELECT * FROM commit_bookings(gen_random_uuid(), jsonb_build_array(jsonb_build_object(
    'id', uuidv7(), 'slot_id', (:slot)::text, 'venue_id', (:venue)::text, 'quantity', 1, 'status', 'confirmed',
    'actor', 'customer', 'fingerprint', repeat('0', 64), 'name', 'Ada Lovelace', 'email', 'ada@example.com',
    'metadata', '{}', 'manage_hash', repeat('0', 64), 'request_id', repeat('0', 32))));
