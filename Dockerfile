# pyunetsep on a CPU, as an ordinary user, with the model jansson2017 inside. Other models are fetched on first use, into
# /models: a volume there keeps them.
#
#   docker build --tag pyunetsep .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/songs" --volume pyunetsep-models:/models pyunetsep \
#     separate song.mp3
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ARG TORCH=torch==2.13.0
# any compiler from GCC 12 on will do
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/pyunetsep
ENV PATH=/opt/pyunetsep/bin:$PATH
# PyTorch has an index of builds for CPUs alone, which its installation page names: --build-arg TORCH_INDEX=. Without it
# gigabytes of CUDA libraries come along.
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
# what .dockerignore lets through
COPY . /source
RUN PYUNETSEP_CUDA=OFF pip install --no-cache-dir '/source[av]'

FROM python:${PYTHON}-slim
COPY --from=build /opt/pyunetsep /opt/pyunetsep
ENV PATH=/opt/pyunetsep/bin:$PATH PYUNETSEP_CACHE=/models
# any user may be given with --user, and has to write here
RUN useradd --create-home --uid 1000 pyunetsep && install --directory --mode 1777 /models /songs
USER 1000
WORKDIR /songs
RUN ["pyunetsep", "doctor"]
ENTRYPOINT ["pyunetsep"]
CMD ["--help"]
