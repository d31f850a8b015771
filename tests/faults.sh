#!/bin/sh
# Runs every suite of faults at full size, and ends with one line of what the tests measured.
# Fails with the first suite that fails, or when a figure was not measured.
set -eu
cd "$(dirname "$0")/.."

TEST_FIGURES=$PWD/target/faults.figures
FAULTS_SECONDS=${FAULTS_SECONDS:-120}
MODEL_CASES=${MODEL_CASES:-5000}
export TEST_FIGURES FAULTS_SECONDS MODEL_CASES
mkdir -p target
rm -f "$TEST_FIGURES"

suite() {
    cargo test --test gateway -- "$@"
}

figure() {
    sed -n "s/^$1 //p" "$TEST_FIGURES" | grep . || {
        echo "make faults: $1 was not measured" >&2
        return 1
    }
}

# Alone, so that the figures are theirs.
suite load:: --skip reload::
suite revocation::
suite model::no_interleaving
suite redis_deployments::
suite model:: --skip model::no_interleaving
suite failure_table:: outages:: redis_faults:: redis_hostile:: refresh:: replicas:: store_contract:: keys:: \
    webhooks:: admin_sessions:: streaming:: bad_input::

replicas=$(figure replicas)
faults=$(figure faults)
requests=$(figure requests)
lost=$(figure sessions_lost)
redeems=$(figure redeems_per_generation)
p99=$(figure revocation_p99)
echo "faults: $replicas replicas, $faults faults injected, $requests requests, $lost sessions lost," \
    "$redeems redeem per refresh token at most, revocation p99 $p99"
