# The service alone: Redis and Postgres are real servers elsewhere (compose.yaml shows them together).
FROM python:3.11-slim-bookworm AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir uv==0.13.8
WORKDIR /build
# Dependencies first: they change less often than the code, and their layer is kept.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN --mount=type=cache,target=/root/.cache/uv \
    UV_PROJECT_ENVIRONMENT=/opt/holdfast uv sync --locked --no-default-groups --no-install-project
COPY app ./app
COPY lua ./lua
COPY migrations ./migrations
RUN --mount=type=cache,target=/root/.cache/uv \
    UV_PROJECT_ENVIRONMENT=/opt/holdfast uv sync --locked --no-default-groups --no-editable

FROM python:3.11-slim-bookworm
# An ordinary user with an entry in passwd: some libraries ask who they are.
RUN useradd --system --uid 10001 --create-home --shell /usr/sbin/nologin holdfast
COPY --from=build /opt/holdfast /opt/holdfast
ENV PATH=/opt/holdfast/bin:$PATH PYTHONUNBUFFERED=1 HOLDFAST_HOST=0.0.0.0 HOLDFAST_PORT=8000
USER holdfast
WORKDIR /home/holdfast
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"HOLDFAST_PORT\"]}/livez', timeout=2)"]
CMD ["holdfast", "serve"]
