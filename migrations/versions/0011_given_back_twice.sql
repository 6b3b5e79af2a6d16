-- The money query of 0003, which now also tells what was given back twice: by Stripe and by hand, say. Nothing in here
-- can prevent that, for both happen elsewhere; but nobody shall have to find it in the books.
CREATE OR REPLACE VIEW money_mismatches AS
    SELECT p.id AS payment_id, b.id AS booking_id, CASE
            WHEN p.status = 'paid' AND p.refund_status = 'none' AND b.status IS DISTINCT FROM 'confirmed'
                THEN 'paid, but neither booked nor refunded'
            WHEN p.refund_status IN ('due', 'done') AND p.refunded_amount >= p.paid_amount AND b.status = 'confirmed'
                THEN 'refunded, but still booked'
            WHEN p.refunded_amount > p.paid_amount THEN 'more given back than was paid'
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
