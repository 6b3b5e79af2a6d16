"""Outgoing webhooks: what happens at a venue, told to the venue's own systems.

    events ─→ enqueue    a row for each endpoint that wants the event, in the transaction that notes it as read
    rows   ─→ due        hands out those whose time has come
           ─→ deliver    one attempt: signed, guarded, bounded; then the row says what became of it

Delivered at least once, not always in order: `webhook-id` names what is repeated, `id` and `time` in the body tell in
which order things happened to a booking.
`endpoints` keeps where they go, `target` guards against going where they must not, `sending` is the request itself.
"""

from app.webhooks.deliveries import Outcome, deliver, due, enqueue, forget_ended

__all__ = ["Outcome", "deliver", "due", "enqueue", "forget_ended"]
