# urepa in a container. For CPUs:
#     docker build -t urepa --build-arg TORCH_INDEX=URL .       # URL: an index of torch's builds for CPUs
#     docker run --rm -v "$PWD:/work" urepa urepa.train
# For NVIDIA GPUs (the driver and the container toolkit are the host's; torch brings the CUDA libraries):
#     docker build -t urepa:cuda --build-arg VARIANT=cuda .
#     docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" urepa:cuda urepa.train
FROM python:3.11-slim-bookworm

# cpu or cuda: which constraints, and the index of CPU builds of torch (empty: pip's own)
ARG VARIANT=cpu
ARG TORCH_INDEX=
ARG EXTRAS=tensorboard,wandb,optuna,kolors

# git: the version of the code in a run's records; gcc: torch.compile
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc git libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/urepa
COPY constraints-cpu.txt constraints-cuda.txt pyproject.toml README.md LICENSE ./
COPY conf conf
COPY hydra_plugins hydra_plugins
COPY launchers launchers
COPY urepa urepa
# editable, since conf/ lies beside the package
RUN pip install --no-cache-dir -c "constraints-${VARIANT}.txt" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -e ".[${EXTRAS}]"

# outputs/, data/ and mlflow.db lie in the folder that is mounted here
WORKDIR /work
ENTRYPOINT ["python", "-m"]
CMD ["urepa.train", "--help"]
