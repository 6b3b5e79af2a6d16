"""The HTTP surface: handlers decode, call once, and return. One module per kind of caller."""

from litestar.types import ControllerRouterHandler

from app.api import machines, operators, problems, public

ROUTES: list[ControllerRouterHandler] = [
    *public.ROUTES,
    *operators.ROUTES,
    *machines.ROUTES,
    problems.describe,
]
