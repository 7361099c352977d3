# jaxalign for NVIDIA GPUs:  docker build --platform=linux/amd64 --file=launch/cuda.Dockerfile --tag=IMAGE .
# Run it with --gpus=all. CUDA comes with JAX's wheels; --build-arg=CUDA=13 for drivers from 580 on.
FROM python:3.12.11-slim-bookworm

WORKDIR /app
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY jaxalign jaxalign
COPY configs configs
ARG CUDA=12
ARG JAX_VERSION=">=0.10,<0.13"
RUN pip install --no-cache-dir "jax[cuda${CUDA}]${JAX_VERSION}" ".[gcs]"

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid=1000 jaxalign
USER jaxalign
ENTRYPOINT ["jaxalign"]
