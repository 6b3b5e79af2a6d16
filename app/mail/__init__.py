"""E-mail for bookings: what is told (`notice`), how it reads (`message`, `calendar`, `money`, `text`), how it leaves
(`delivery`), and the Maildir in which a demo keeps it (`maildir`).

It knows neither store and no use case: whoever sends fills in a `Notice`. Nothing is imported here, so that a process
that only writes down what is to be sent pays neither for the templates nor for the SMTP client.
"""
