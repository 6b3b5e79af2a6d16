"""Holdfast: a self-hosted reservation service. The path of a booking starts in `app/booking.py`."""
