# One image for all of the project's services: exporters, aligner, simulator, and every other command.
FROM python:3.13.7-slim-trixie AS build
WORKDIR /src
COPY deploy/requirements.lock deploy/requirements.lock
RUN python -m venv /opt/benchlab-otel \
 && /opt/benchlab-otel/bin/pip install --no-cache-dir --require-hashes -r deploy/requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY exporters exporters
RUN pip install --no-cache-dir "setuptools==80.9.0" \
 && pip wheel --no-cache-dir --no-deps --no-build-isolation -w dist . \
 && /opt/benchlab-otel/bin/pip install --no-cache-dir --no-deps dist/*.whl

FROM python:3.13.7-slim-trixie
COPY --from=build /opt/benchlab-otel /opt/benchlab-otel
# Volumes take their owner from these folders.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/benchlab-otel --shell /usr/sbin/nologin benchlab \
 && install -d -o 10001 -g 10001 /var/lib/benchlab-otel /run/benchlab-otel
ENV PATH=/opt/benchlab-otel/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BENCHLAB_OTEL_RUNTIME_DIR=/run/benchlab-otel \
    XDG_STATE_HOME=/var/lib
USER 10001:10001
WORKDIR /var/lib/benchlab-otel
ENTRYPOINT ["benchlab-otel"]
CMD ["--help"]
