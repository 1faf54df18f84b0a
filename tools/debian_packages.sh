#!/usr/bin/env bash
# Debian packages for the demo, the privileged tests, the real tools that tests run against, and the peers of the benchmarks.
# Installs what is missing when root, else says what to install.
set -euo pipefail
packages=(
  # demo and slots: file systems, name spaces, loop devices
  e2fsprogs iproute2 util-linux
  # boot loaders: their own tools and, where Debian has one, the loader itself
  libubootenv-tool grub-common grub-emu mtools dosfstools u-boot-qemu qemu-system-arm
  systemd-boot-efi ovmf qemu-system-x86
  # release tool and trust: other people's decoders, a PKCS#11 token, a clock that lies
  zstd openssl softhsm2 opensc faketime
  # benchmarks: images to install, and the tools to be measured against
  mmdebstrap erofs-utils squashfs-tools xdelta3 casync zchunk rauc swupdate
)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "missing Debian packages: ${missing[*]}; install them (apt-get install ${missing[*]}) or run as root" >&2
  exit 1
fi
echo "installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
