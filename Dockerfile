# A whole cluster in one container: the supervisor is its first process, the nodes are its children.
# For one node a container use --entrypoint replserver; all of them need the register on one shared volume of one host.
#
#   docker build -t replcluster --build-arg COMMIT="$(git log -1 --format='%h %cs' --abbrev=7)" .
#   docker run --name demo --hostname replcluster -v demo:/var/lib/replcluster -p 127.0.0.1:2379-2381:2379-2381 replcluster
#
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# What stands behind the version; the repository itself is not copied.
ARG COMMIT=""
ENV REPLCLUSTER_COMMIT=$COMMIT
# cluster.toml is what `replcluster init` writes.
COPY Cargo.toml Cargo.lock build.rs cluster.toml ./
COPY proto proto
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bins \
    && install -D -t /out target/release/replcluster target/release/replserver

FROM debian:bookworm-slim
RUN groupadd --system --gid 990 replcluster \
    && useradd --system --uid 990 --gid replcluster --home-dir /var/lib/replcluster --shell /usr/sbin/nologin replcluster \
    && install -d -m 0700 -o replcluster -g replcluster /var/lib/replcluster
COPY --from=build /out/ /usr/local/bin/
COPY packaging/container.toml /etc/replcluster/cluster.toml
ENV REPLCLUSTER_CONFIG=/etc/replcluster/cluster.toml
USER replcluster
WORKDIR /var/lib/replcluster
VOLUME /var/lib/replcluster
EXPOSE 2379 2380 2381
# Followers end before the leader: give `docker stop` more than its ten seconds with --time.
STOPSIGNAL SIGTERM
# Degraded (8) still serves.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD replcluster status >/dev/null || [ $? -eq 8 ] || exit 1
# No other init is needed: it ends its nodes at SIGTERM and collects orphans.
ENTRYPOINT ["replcluster"]
CMD ["up", "--foreground"]
