#!/bin/sh
# Writes completion scripts and man page anew from the program: share/update.sh build/release/porthole
set -eu
cd "$(dirname "$0")/.."
porthole=${1:-build/release/porthole}
"$porthole" completion bash > share/completions/porthole.bash
"$porthole" completion zsh > share/completions/_porthole
"$porthole" completion fish > share/completions/porthole.fish
"$porthole" completion man > share/man/porthole.1
