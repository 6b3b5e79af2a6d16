"""The parameters that the simulator takes. Any other is refused: what is ignored in silence would pass every test."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

#: Stripe's bounds.
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=40)], Annotated[str, Meta(max_length=500)]], Meta(max_length=50)
]
Currency = Annotated[str, Meta(pattern=r"^[a-z]{3}\Z")]
Amount = Annotated[int, Meta(ge=0, le=99_999_999)]
Quantity = Annotated[int, Meta(ge=1, le=999_999)]
Limit = Annotated[int, Meta(ge=1, le=100)]


class ProductData(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=5000)]
    description: str | None = None
    #: Taken, and without any effect here.
    images: list[str] = []
    metadata: Metadata = {}


class PriceData(Struct, forbid_unknown_fields=True):
    currency: Currency
    unit_amount: Amount
    product_data: ProductData
    tax_behavior: Literal["exclusive", "inclusive", "unspecified"] | None = None


class LineItemParams(Struct, forbid_unknown_fields=True):
    price_data: PriceData
    quantity: Quantity


class PaymentIntentData(Struct, forbid_unknown_fields=True):
    metadata: Metadata = {}
    description: str | None = None
    receipt_email: str | None = None
    statement_descriptor: str | None = None
    statement_descriptor_suffix: str | None = None
    capture_method: Literal["automatic", "automatic_async"] | None = None


class SessionParams(Struct, forbid_unknown_fields=True, kw_only=True):
    mode: Literal["payment"]
    line_items: Annotated[list[LineItemParams], Meta(max_length=100)] = []
    metadata: Metadata = {}
    client_reference_id: Annotated[str, Meta(max_length=200)] | None = None
    payment_intent_data: PaymentIntentData = field(default_factory=PaymentIntentData)
    success_url: str | None = None
    cancel_url: str | None = None
    customer_email: Annotated[str, Meta(max_length=512)] | None = None
    expires_at: int | None = None
    payment_method_types: list[str] = []
    expand: list[str] = []
    #: Taken, and without any effect here.
    ui_mode: Literal["hosted_page"] | None = None
    locale: str | None = None
    submit_type: Literal["auto", "book", "donate", "pay"] | None = None
    billing_address_collection: Literal["auto", "required"] | None = None
    customer_creation: Literal["always", "if_required"] | None = None
    phone_number_collection: dict[str, bool] = {}
    payment_method_options: dict[str, Any] = {}
    custom_text: dict[str, Any] = {}


class RefundParams(Struct, forbid_unknown_fields=True, kw_only=True):
    payment_intent: str | None = None
    charge: str | None = None
    amount: Annotated[int, Meta(ge=1)] | None = None
    reason: Literal["duplicate", "fraudulent", "requested_by_customer"] | None = None
    metadata: Metadata = {}
    expand: list[str] = []


class Nothing(Struct, forbid_unknown_fields=True):
    """A request that takes nothing but `expand`."""

    expand: list[str] = []


class Page(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every list takes: newest first, at most 100 at a time."""

    limit: Limit = 10
    starting_after: str | None = None
    ending_before: str | None = None
    expand: list[str] = []


class Created(Struct, forbid_unknown_fields=True):
    gt: int | None = None
    gte: int | None = None
    lt: int | None = None
    lte: int | None = None


class SessionPage(Page, forbid_unknown_fields=True, kw_only=True):
    payment_intent: str | None = None
    status: Literal["open", "complete", "expired"] | None = None
    created: Created | None = None


class RefundPage(Page, forbid_unknown_fields=True, kw_only=True):
    payment_intent: str | None = None
    charge: str | None = None
    created: Created | None = None


class EventPage(Page, forbid_unknown_fields=True, kw_only=True):
    type: str | None = None
    types: list[str] = []
    delivery_success: bool | None = None
    created: Created | None = None
