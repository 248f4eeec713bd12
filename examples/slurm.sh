#!/bin/bash
# One run on several machines under SLURM: it saves before its time is up, queues itself again, and goes on.
#
#   sbatch examples/slurm.sh SOURCE... --out RUN [options of tubelet train]
#
# Adapt the lines below to the cluster. RUN must lie where all machines see it.

#SBATCH --job-name=tubelet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --output=tubelet-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300

set -uo pipefail

# How many seconds torchrun leaves its processes to save; PyTorch 2.11 leaves 30 whatever is set here.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
# Lengths of masks differ from step to step: let the CUDA allocator's segments grow instead of fragmenting.
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}

# Five minutes before the end, SLURM signals only this script, which signals the run and remembers why.
again=no
stop() {
    again=yes
    scancel --signal=USR1 "$SLURM_JOB_ID"
}
trap stop USR1

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun python -m torch.distributed.run \
    --nnodes="$SLURM_NNODES" --nproc-per-node="${PROCESSES:-gpu}" --max-restarts=3 \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --rdzv-backend=c10d --rdzv-endpoint="$first:${PORT:-29500}" --rdzv-id="$SLURM_JOB_ID" \
    -m tubelet train "$@" --resume &
run=$!
wait "$run"
code=$?
while kill -0 "$run" 2>/dev/null; do # the signal ended the waiting, not the run
    wait "$run"
    code=$?
done

if [ "$again" = yes ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
