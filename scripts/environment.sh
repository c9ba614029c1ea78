# Sourced by the other scripts: a virtual environment in .venv with this project and the packages of some of its extras.
#
#     source scripts/environment.sh
#     ensure_environment demo                 # sets $PYTHON; the extras are listed in pyproject.toml
#
# PYTHON names an interpreter to use as it is: nothing is installed then. HATFREQ_PYTHON names the interpreter that .venv is
# made with (default: the newest of python3.13 ... python3.10, python3).

# Threads that wait for each other spin briefly only: on a machine with other work they would keep each other from running.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${HATFREQ_PYTHON:-python3.13 python3.12 python3.11 python3.10 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "no Python >= 3.10 found: install one, or name it in HATFREQ_PYTHON"
}

ensure_environment() {
    local extras=$1 stamp base
    if [ -n "${PYTHON:-}" ]; then return; fi
    PYTHON="$PWD/.venv/bin/python"
    stamp=".venv/.installed-$(cat pyproject.toml requirements.txt | cksum | cut -d' ' -f1)"
    if [ -e "$stamp-dev" ] || [ -e "$stamp-$extras" ]; then return; fi
    if [ ! -x "$PYTHON" ]; then
        base=$(find_python) || exit 1
        say "Making a virtual environment in .venv with $("$base" --version)"
        "$base" -m venv .venv || fail "could not make .venv: Debian and Ubuntu need 'apt install python3-venv'"
    fi
    say "Installing hatfreq[$extras] into .venv: PyTorch and its CUDA libraries are some 3 GB, once; minutes"
    # requirements.txt pins the versions; editable, so that the package is this folder.
    "$PYTHON" -m pip install --disable-pip-version-check --constraint requirements.txt --editable ".[$extras]" \
        || fail "pip could not install it (see above); the same command resumes"
    touch "$stamp-$extras"
    say "Installed. For commands of your own: source .venv/bin/activate"
}
