#!/bin/sh
# Runs the shipped examples of deploy/ingress in the real programs, and ends with one line of what held.
set -eu
cd "$(dirname "$0")/.."

TEST_FIGURES=$PWD/target/ingress.figures
export TEST_FIGURES
mkdir -p target
rm -f "$TEST_FIGURES"

cargo test --test gateway -- ingress::

sed -n 's/^ingress_case //p' "$TEST_FIGURES" | sort
programs=$(sed -n 's/^ingress_case \([A-Za-z]*\):.*/\1/p' "$TEST_FIGURES" | sort -u | wc -l)
cases=$(grep -c '^ingress_case ' "$TEST_FIGURES")
echo "ingress: $programs programs, $cases cases held"
