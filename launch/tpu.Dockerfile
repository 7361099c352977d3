# jaxalign for Cloud TPU:  docker build --platform=linux/amd64 --file=launch/tpu.Dockerfile --tag=IMAGE .
FROM python:3.12.11-slim-bookworm

WORKDIR /app
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY jaxalign jaxalign
COPY configs configs
ARG JAX_VERSION=">=0.10,<0.13"
RUN pip install --no-cache-dir "jax[tpu]${JAX_VERSION}" ".[gcs]"

# As root: the TPU's device files belong to it.
ENTRYPOINT ["jaxalign"]
