"""Calendars: feeds to subscribe to (`feeds` keeps their secrets, `bookings` reads what is in them, `ical` writes them),
and the view of a day or a week that a terminal shows (`agenda`).

Postgres only, and no use case: holds are handed in by whoever asked both stores. Nothing is imported here, so that a
process that serves no feed does not pay for icalendar.
"""
