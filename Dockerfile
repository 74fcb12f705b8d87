# make build, then docker build: the image is the one static binary. To reach
# the engine, run it with -v /var/run/docker.sock:/var/run/docker.sock.
FROM scratch
COPY bin/orlop /orlop
ENTRYPOINT ["/orlop"]
