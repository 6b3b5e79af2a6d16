"""A simulator of Stripe, for the tests and for `make run`: it keeps books, answers and signs like Stripe, and no money
moves.

    state.py        what is remembered, its clock, and the file it is kept in
    objects.py      how that looks in Stripe's JSON
    params.py       which parameters are taken
    forms.py        requests in, `a[b][0]=c`; errors out, as Stripe words them
    ledger.py       what can happen: checkout, payment, expiry, refund; each tells events
    idempotency.py  the first answer again
    faults.py       what goes wrong on demand
    delivery.py     signed webhooks
    exchange.py     one request and its answer: the key, the first answer, a fault
    api.py          /v1, for the Stripe SDK
    pages.py        /pay, for a person
    control.py      /_control, for tests
    mailbox.py      e-mails of a demo: taken by SMTP, shown at /mailbox
    server.py       the application and the process around it

It knows nothing of bookings, and the service knows nothing of it: they meet over HTTP. Only the command line starts it.
"""
