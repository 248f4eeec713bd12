#!/bin/bash
# One run on several machines under SLURM. It saves before the time limit, requeues itself, and resumes.
#
#   sbatch examples/slurm.sh SOURCE... --out RUN [options of tubelet train]
#
# Adapt the lines below to the cluster. RUN must be on storage that all machines share.

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

# Seconds that torchrun gives its processes to save; PyTorch 2.11 ignores it and gives 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
# Mask lengths change from step to step: let the CUDA allocator's segments grow instead of fragmenting.
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}

# Five minutes before the time limit, SLURM signals only this script, which signals the run and sets `requeue`.
requeue=no
stop() {
    requeue=yes
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
while kill -0 "$run" 2>/dev/null; do # the signal interrupted `wait`, not the run
    wait "$run"
    code=$?
done

if [ "$requeue" = yes ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
