#!/usr/bin/env bash
# Cross-compile the kernels for aarch64 (NEON) and run tests of them on this machine under qemu-user; say whether the bits are
# those of this machine. On Debian, from the mirrors that apt knows; as root, for mmdebstrap; needs no binfmt and no container.
#
#   tools/test_aarch64.sh PYTHON [ARGUMENTS OF PYTEST]
#
# PYTHON has what builds and tests cllm. Without arguments: the digests, golden files, laws at small sizes, and the kernels' tests
# that take seconds; `tests/kernels` is all of the kernels (many minutes). All is kept in build/aarch64 for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1"); shift
here=$PWD/build/aarch64 root=$PWD/build/aarch64/root site=$PWD/build/aarch64/site package=$PWD/build/aarch64/package
mkdir -p "$here"

missing=()
for pair in qemu-aarch64-static:qemu-user-static mmdebstrap:mmdebstrap aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu; do
    command -v "${pair%%:*}" > /dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "tools/test_aarch64.sh: needs more of Debian; missing: ${missing[*]}. Do: apt-get install ${missing[*]} libc6-dev-arm64-cross" >&2
    exit 1
fi

if [ ! -e "$root.made" ]; then
    rm -rf "$root"
    sources=(/etc/apt/sources.list.d/*.sources)
    [ -e "${sources[0]}" ] || sources=(/etc/apt/sources.list)
    # shellcheck disable=SC1091
    mmdebstrap --quiet --architectures=arm64 --variant=extract --skip=check/qemu \
        --include=python3,python3-dev,libc6-dev,libgomp1,libstdc++6 "$(. /etc/os-release; echo "$VERSION_CODENAME")" "$root" "${sources[@]}"
    touch "$root.made"
fi
version=$(basename "$(ls -d "$root"/usr/include/python3.*)"); version=${version#python}

if [ ! -e "$site.made" ]; then
    rm -rf "$site"
    "$python" - > "$here/needs.txt" <<'E'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
needed = project["dependencies"] + project["optional-dependencies"]["test"]
print("\n".join(name for name in needed if not name.startswith("Cython")))
E
    "$python" -m pip install --quiet --target "$site" --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 \
        --only-binary=:all: --python-version "$version" --requirement "$here/needs.txt"
    touch "$site.made"
fi

rm -rf "$package"; mkdir "$package"
cp -r cllm tests tools setup.py pyproject.toml README.md LICENSE "$package"
find "$package/cllm" -name '*.so' -delete
echo "compiling for aarch64"
(cd "$package" && CLLM_MARCH=armv8-a CLLM_OPENMP=1 CC=aarch64-linux-gnu-gcc LDSHARED="aarch64-linux-gnu-gcc -shared" LDFLAGS= \
    CFLAGS="-I$root/usr/include/python$version -I$root/usr/include" \
    SETUPTOOLS_EXT_SUFFIX=".cpython-${version/./}-aarch64-linux-gnu.so" \
    "$python" setup.py -q build_ext --inplace > "$here/build.log" 2>&1) || { cat "$here/build.log" >&2; exit 1; }
fused=$(aarch64-linux-gnu-objdump -d "$package"/cllm/_kernels*.so | grep -cE 'fmla\s+v[0-9]+\.(4s|2d)' || true)
[ "$fused" -gt 0 ] || { echo "the kernels must use NEON; got no fmla on vectors" >&2; exit 1; }
echo "$fused multiply-adds on NEON vectors in the kernels"

seconds=(activation residual random gated softcap rmsnorm embedding loss optimizer compress gradient_lists array_list streaming
         lawtools first_fit clock)
if [ $# -eq 0 ]; then
    # shellcheck disable=SC2046
    set -- $(printf 'tests/kernels/test_%s.py ' "${seconds[@]}") tests/models/test_golden.py tests/laws/test_twenty_steps.py
fi
emulated() {
    (cd "$package" && env -i HOME="$here" PATH="$PATH" PYTHONHOME="$root/usr" PYTHONPATH="$package:$site" PYTHONDONTWRITEBYTECODE=1 \
        qemu-aarch64-static -L "$root" "$root/usr/bin/python$version" -m pytest -q -n 0 -p no:cacheprovider "$@")
}
if emulated tests/laws/test_one_answer.py; then
    echo "bits equal: aarch64 writes the digests of every processor that rounds a product with its sum"
else
    echo "bits differ: the tests above name the family; a kernel that sums in registers' lanes is where to look (decision 14)" >&2
    exit 1
fi
emulated "$@"
