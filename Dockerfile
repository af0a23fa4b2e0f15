# The gateway's image. docs/install.md says how to build and run it.
#
# It is built by podman, buildah, BuildKit and docker's old builder alike, so there is no `# syntax=` line and no cache
# mount: dependencies are a layer of their own instead.

ARG RUST_VERSION=1.95
ARG RUST_IMAGE=docker.io/library/rust:${RUST_VERSION}-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

# For another platform than the machine's, the whole build is emulated; release.yaml has a machine for each instead.
FROM ${RUST_IMAGE} AS build
ARG CARGO_AUDITABLE_VERSION=0.7.7
RUN cargo install --locked --quiet --version ${CARGO_AUDITABLE_VERSION} cargo-auditable
WORKDIR /src

# `dev` builds in a sixth of the time, for trying the image out.
ARG PROFILE=release
# The release is optimized by what it does under load, so it is built twice: the first time without, and all of what it
# depends on again with what was learned.
COPY deploy/release/build deploy/release/
RUN if [ "$PROFILE" = release ] && command -v rustup >/dev/null; then rustup component add llvm-tools; fi

# Nothing but the manifests: this layer stays until they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches \
 && echo '//! A stub.' > src/lib.rs \
 && printf '//! A stub.\nfn main() {}\n' > src/main.rs && cp src/main.rs benches/steps.rs && cp src/main.rs benches/tokens.rs \
 && if [ "$PROFILE" = release ]; then CARGO="cargo auditable" deploy/release/build --counting; \
    else cargo auditable build --locked --profile "$PROFILE" --bin timbr-gateway; fi
COPY deploy/release/licences deploy/release/licences
RUN mkdir -p /out/usr/share/doc/timbr-gateway \
 && deploy/release/licences > /out/usr/share/doc/timbr-gateway/THIRD_PARTY_LICENSES

COPY LICENSE /out/usr/share/doc/timbr-gateway/
COPY deploy/release/train deploy/release/
COPY src src
ARG REVISION=unknown
# cargo goes by times, and the stubs above are younger than the sources.
RUN touch src/main.rs src/lib.rs && export BUILD_COMMIT="$REVISION" \
 && if [ "$PROFILE" = release ]; then CARGO="cargo auditable" deploy/release/build && built=target/trained/timbr-gateway; \
    else cargo auditable build --locked --profile "$PROFILE" --bin timbr-gateway \
      && built=target/$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")/timbr-gateway; fi \
 && install -D "$built" /out/usr/local/bin/timbr-gateway

FROM ${RUNTIME_IMAGE}
COPY --from=build /out /
# 65532 by number, as Kubernetes' runAsNonRoot cannot look names up.
USER 65532:65532
# HTTPS, plain HTTP where listen.http says so, and the operators' listener, which is on the loopback address unless
# listen.admin says otherwise. No setting is made here: a variable would win over a mounted file in silence.
EXPOSE 8443 8080 9180
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
  CMD ["/usr/local/bin/timbr-gateway", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/timbr-gateway"]
CMD ["serve"]

ARG VERSION=0.0.0-unreleased
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="timbr-gateway" \
      org.opencontainers.image.description="An authenticating reverse proxy for the API of a Timbr semantic layer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
