# urepa in a container. For CPUs:
#     docker build -t urepa --build-arg TORCH_INDEX=URL .       # URL: an index of torch's builds for CPUs
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" urepa urepa.train
# For NVIDIA GPUs (the driver and the container toolkit are the host's; torch brings the CUDA libraries):
#     docker build -t urepa:cuda --build-arg VARIANT=cuda .
#     docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -v "$PWD:/work" urepa:cuda urepa.train
FROM python:3.11-slim-bookworm

# cpu or cuda: which constraints, and the index of CPU builds of torch (empty: pip's own)
ARG VARIANT=cpu
ARG TORCH_INDEX=
ARG EXTRAS=tensorboard,wandb,optuna,kolors

# git: the version of the code in a run's records; gcc: torch.compile. Debian keeps one version of each in a release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc git libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/urepa
COPY constraints-cpu.txt constraints-cuda.txt pyproject.toml README.md LICENSE ./
COPY conf conf
COPY hydra_plugins hydra_plugins
COPY launchers launchers
COPY urepa urepa
# editable, since conf/ lies beside the package; compiled, since a run may not write there
RUN pip install --no-cache-dir -c "constraints-${VARIANT}.txt" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -e ".[${EXTRAS}]" \
    && python -m compileall -q hydra_plugins launchers urepa \
    && mkdir /work \
    && chown 1000:1000 /work

# outputs/, data/ and mlflow.db lie in the folder that is mounted here. Runs are not root's: --user gives the user of that
# folder, whom the image need not know; what libraries cache goes to /tmp.
WORKDIR /work
ENV HOME=/tmp USER=urepa
USER 1000:1000
ENTRYPOINT ["python", "-m"]
CMD ["urepa.train", "--help"]
