# mmprm for GPUs, installed by the same commands as in the README.
#
#   docker build -t mmprm:gpu .
#   docker run --rm --gpus all --network host --ipc host --ulimit memlock=-1 --ulimit stack=67108864 \
#     -v /shared:/shared mmprm:gpu mmprm doctor
#
# CUDA 13.0 is that of the pinned torch and vLLM wheels, and needs a driver of version 580 or later. The image has the
# compilers (devel) because DeepSpeed, Triton and FlashInfer build kernels when they first run.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

# git and curl for users; wget for the health checks of KubeRay; libibverbs for NCCL between machines.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        build-essential ca-certificates curl git ibverbs-providers libibverbs1 make ninja-build numactl \
        openssh-client python3.12 python3.12-dev python3.12-venv wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/mmprm
COPY . .
RUN make setup EXTRA=gpu PYTHON=python3.12 && rm -rf /root/.cache/pip

# Links as well as PATH: KubeRay starts login shells, which set PATH anew.
ENV PATH=/opt/mmprm/.venv/bin:$PATH
RUN ln -s /opt/mmprm/.venv/bin/mmprm /opt/mmprm/.venv/bin/ray /opt/mmprm/.venv/bin/torchrun /usr/local/bin/

CMD ["mmprm", "doctor"]
