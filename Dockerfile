# The server, installed as the README does it: a plain pip install under constraints.txt.
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY engine engine
COPY lua lua
COPY http http
RUN pip install --no-cache-dir --constraint constraints.txt '.[postgresql]' && rm -rf /src/*

# The data directory holds the secret, without HOLDFAST_STORE the SQLite store, and without HOLDFAST_REDIS the data of
# the server's own Redis.
RUN useradd --system --uid 10001 --no-create-home holdfast && install -d -o holdfast -m 0700 /data
USER holdfast
WORKDIR /data
VOLUME /data

ENV HOLDFAST_HOST=0.0.0.0 \
    HOLDFAST_PORT=8080 \
    HOLDFAST_DATA_DIR=/data \
    PYTHONUNBUFFERED=1
EXPOSE 8080

# Exec form: the server is process 1, gets SIGTERM itself and has time for its last snapshot.
STOPSIGNAL SIGTERM
CMD ["holdfast", "serve"]
