"""Amounts as people read them."""

from app.mail.notice import Money

#: Stripe counts these in whole units. ISK and UGX have no minor unit either, and yet Stripe counts them in hundredths.
ZERO_DECIMAL = frozenset(
    ("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF")
)
THREE_DECIMAL = frozenset(("BHD", "JOD", "KWD", "OMR", "TND"))


def money_text(money: Money) -> str:
    """Tell an amount, such as `12.50 EUR`. No separator of thousands: its meaning depends on the country."""
    currency = money.currency.upper()
    decimals = 0 if currency in ZERO_DECIMAL else 3 if currency in THREE_DECIMAL else 2
    sign, digits = "-" if money.amount < 0 else "", f"{abs(money.amount):0{decimals + 1}}"
    # Digits, never floats: an amount is exact.
    whole, part = (digits[:-decimals], digits[-decimals:]) if decimals else (digits, "")
    return f"{sign}{whole}{'.' if part else ''}{part} {currency}"
