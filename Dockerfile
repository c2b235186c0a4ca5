# gr2 in a container: for GPUs (PyPI's torch brings CUDA along), or for CPUs alone.
#   docker build -t gr2 .
#   docker build -t gr2:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#   docker run --rm --gpus all --shm-size 8g -v /data:/data gr2 pretrain --tokens /data/tokens --out /data/pretrain
FROM python:3.11-slim

ARG TORCH_INDEX=
ARG EXTRAS=serve,ray

# OpenGL without a screen, for --renderer egl
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/gr2
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"; fi \
    && pip install --no-cache-dir "/opt/gr2[$EXTRAS]"

WORKDIR /work
ENTRYPOINT ["gr2"]
CMD ["doctor"]
