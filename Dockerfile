# The command line in a container. CUDA comes with torch's own packages, so that a plain Python image
# is enough: docker run --gpus all -v "$PWD:/data" driving-xai doctor
FROM python:3.11.14-slim-bookworm AS build

WORKDIR /src
RUN python -m venv /opt/driving-xai
ENV PATH="/opt/driving-xai/bin:$PATH"

# The libraries change seldom and weigh gigabytes: they are a layer of their own, from files of these hashes.
# docs/THIRD-PARTY.md says what is among them and what follows for who passes the image on.
COPY .ci/requirements.txt ./
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY data_prep data_prep
COPY driving_xai driving_xai
# setuptools, which builds the package, is among the hashed files: an isolated build would fetch another.
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm

RUN useradd --create-home --uid 1000 driver
COPY --from=build /opt/driving-xai /opt/driving-xai
ENV PATH="/opt/driving-xai/bin:$PATH"
USER 1000
WORKDIR /data
ENTRYPOINT ["driving-xai"]
CMD ["--help"]
