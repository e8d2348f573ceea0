"""The packages of NVIDIA's repository that the lab stands in for: names, versions, dependencies, contents.

Sources of names, versions and relations (the formats of what the programs print are noted in ``files/``):

- apt's own output of installations from the debian13 repository, 610.43.02 and 610.57.04
  (github.com/psygreg/linuxtoys issues 908 and 1038): the set and order of the driver packages.
- Debian 12, branch 580: `apt-cache policy` and `apt-cache search` of the pinning packages (580-1, 580-5; one
  for each patch release), and the relations of cuda-drivers-580 580.105.08-1 (NVIDIA developer forum, topic
  353805): lower bounds only, which is why an unpinned installation floats to the newest branch.
- The debian13 repository has no branch before 590 and no CUDA before 13.1
  (github.com/NVIDIA/cuda-repo-management issues 38 and 40).
- 595.45.04 and 595.71.05 in it: public playbooks and notes of August 2026; 595.91.07 and 620.70.06 are
  NVIDIA's (developer.download.nvidia.com, redistrib_620.70.06 of 2026-11-04). Branch 620 has no proprietary
  kernel modules (driver installation guide 620, section 4.1): no package of them, and no metapackage.
- nvidia-driver-cuda brings nvidia-smi and conflicts with Debian's package of that name; the headless set is
  `nvidia-driver-cuda nvidia-kernel-open-dkms` (driver installation guide, Debian, "compute-only").
- From 580 on the fabric manager is `nvidia-fabricmanager`, providing the old name with the branch
  (github.com/NVIDIA/gpu-driver-container pull request 451); control file in
  NVIDIA/apt-packaging-fabric-manager.
- The form of an apt pin: `src:*nvidia*:any src:cuda-drivers:any src:cuda-compat:any`, priority 1000
  (instructions for NVIDIA's local driver repositories). What exactly the pinning packages of the network
  repository list could not be read; that their pattern does not cover the fabric manager, whose source
  package is `fabricmanager`, is the harder of the two cases for a role, and the one taken here.
- Versions of the CUDA components: NVIDIA's lists of packages per toolkit release.

Libraries are empty packages: a file that is not a library, under a library's name, would only confuse the
loader.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from lab.vendor.debian import File, Package

FILES = Path(__file__).with_name("files")
SHARE = "/usr/share/nvidia-standin"
UNITS = "/lib/systemd/system"


@dataclass(frozen=True)
class Platform:
    """One directory of NVIDIA's repository: what it holds, and which of NVIDIA's keys signs the real one."""

    slug: str
    drivers: tuple[str, ...]
    toolkits: tuple[str, ...]
    patch_pins: bool  # pinning packages for single patch releases, besides those for branches


PLATFORMS = (
    Platform(
        "debian12",
        ("580.126.20", "580.159.04", "590.48.01", "595.71.05", "610.57.04"),
        ("13.0", "13.1"),
        True,
    ),
    Platform(
        "debian13",
        ("590.44.01", "590.48.01", "595.45.04", "595.71.05", "610.57.04"),
        ("13.1", "13.3"),
        False,
    ),
)
# The same repository later: branches that are over were taken out of the index, and newer ones have come.
LATER_PLATFORMS = (
    Platform("debian12", ("595.91.07", "620.70.06"), ("13.0", "13.1"), True),
    Platform("debian13", ("595.91.07", "620.70.06"), ("13.1", "13.3"), False),
)
AGES = {"first": PLATFORMS, "later": LATER_PLATFORMS}
# Debian revisions of the pinning package of each branch; those of 595 and 620 are the lab's own.
_PIN_VERSIONS = {"580": "580-5", "590": "590-3", "595": "595-1", "610": "610-2", "620": "620-1"}
_FIRST_OPEN_ONLY = 620
# (version of the metapackages, version of most components) of each toolkit.
_TOOLKITS = {
    "13.0": ("13.0.3-1", "13.0.88-1"),
    "13.1": ("13.1.1-1", "13.1.115-1"),
    "13.3": ("13.3.0-1", "13.3.29-1"),
}
_NEWEST_CONFIG = "13.3.29-1"

_METAPACKAGE = ("nvidia-driver", "nvidia-driver-cuda", "nvidia-settings", "nvidia-xconfig")
_LIBRARIES = {
    "libcuda1": "NVIDIA CUDA Driver Library",
    "libcudadebugger1": "NVIDIA CUDA Debugger Library",
    "libnvcuvid1": "NVIDIA CUDA Video Decoder runtime library",
    "libnvidia-cfg1": "NVIDIA binary OpenGL/GLX configuration library",
    "libnvidia-encode1": "NVENC Video Encoding runtime library",
    "libnvidia-gpucomp": "NVIDIA binary GPU compiler library",
    "libnvidia-nvvm4": "NVIDIA NVVM Compiler library",
    "libnvidia-opticalflow1": "NVIDIA Optical Flow runtime library",
    "libnvidia-pkcs11-openssl3": "NVIDIA PKCS #11 Library (OpenSSL 3)",
    "libnvidia-ptxjitcompiler1": "NVIDIA PTX JIT Compiler library",
    "nvidia-opencl-icd": "NVIDIA OpenCL installable client driver (ICD)",
}


def repository_packages(
    platform: Platform, keyring: bytes, key_id: str, modules: bool = False
) -> list[Package]:
    """Return all packages of one platform's directory.

    ``modules``: with sources that DKMS builds, for hosts with a kernel of their own.
    """
    packages = [_cuda_keyring(platform, keyring, key_id)]
    branches = {version.split(".")[0] for version in platform.drivers}
    packages += [_pinning(branch, f"{branch}.*", _PIN_VERSIONS[branch]) for branch in sorted(branches)]
    for version in platform.drivers:
        if platform.patch_pins:
            packages.append(_pinning(version, f"{version}-*", f"{version}-1"))
        packages += _with_modules(_driver(version), version) if modules else _driver(version)
    for toolkit in platform.toolkits:
        packages += _toolkit(toolkit)
    for name in ("cuda-toolkit-config-common", "cuda-toolkit-13-config-common"):
        packages.append(
            _empty(name, _NEWEST_CONFIG, name, "Common config package for CUDA Toolkit", {}, "all")
        )
    packages.append(_empty("nvlsm", "2025.10.14-1", "nvlsm", "NVLink Subnet Manager", {}))
    return packages


def _driver(version: str) -> list[Package]:
    """Return the packages of one driver release."""
    branch, full = version.split(".")[0], f"{version}-1"
    same, least = f"(= {full})", f"(>= {version})"

    def package(
        name: str,
        description: str,
        source: str = "nvidia-graphics-drivers",
        relations: dict[str, str] | None = None,
        files: dict[str, File] | None = None,
    ) -> Package:
        return Package(name, full, source, description, relations or {}, files or {})

    def module(name: str, other: str, kind: str, is_open: bool) -> Package:
        return package(
            name,
            f"NVIDIA {kind} kernel module DKMS source",
            relations={
                "Depends": f"dkms, python3, nvidia-kernel-support {same}, firmware-nvidia-gsp {same},"
                f" nvidia-modprobe {least}",
                "Conflicts": other,
                "Replaces": other,
            },
            files={
                "/usr/lib/nvidia-standin/load-kernel-module": _file("load_kernel_module.py", 0o755),
                "/usr/lib/nvidia-standin/module.json": _json({"version": version, "open": is_open}),
                "/usr/lib/nvidia-standin/gpus.json": _gpus(),
                f"{UNITS}/nvidia-kernel-module-standin.service": _file(
                    "nvidia-kernel-module-standin.service"
                ),
                f"{UNITS}/multi-user.target.wants/nvidia-kernel-module-standin.service": File(
                    link="../nvidia-kernel-module-standin.service"
                ),
            },
        )

    libraries = [package(name, text) for name, text in _LIBRARIES.items()]
    cuda_libraries = ", ".join(f"{name} {same}" for name in _LIBRARIES)
    # Only lower bounds: this is how an installation without a pin reaches the newest branch.
    both = ", ".join(f"{name} {least}" for name in _METAPACKAGE)
    packages = [
        *libraries,
        package(
            "libnvidia-ml1",
            "NVIDIA Management Library (NVML) runtime library",
            relations={"Depends": "python3"},
            files={
                f"{SHARE}/nvml/nvml_standin.py": _file("nvml_standin.py"),
                f"{SHARE}/nvml/version": _text(version),
                f"{SHARE}/nvml/gpus.json": _gpus(),
            },
        ),
        package("nvidia-kernel-support", "NVIDIA kernel module support files"),
        package("firmware-nvidia-gsp", "NVIDIA GSP firmware"),
        module("nvidia-kernel-open-dkms", "nvidia-kernel-dkms", "open", True),
        module("nvidia-kernel-dkms", "nvidia-kernel-open-dkms", "proprietary", False),
        package(
            "nvidia-driver-cuda",
            "NVIDIA driver CUDA integration components",
            relations={
                "Depends": f"python3, libnvidia-ml1 {same}, {cuda_libraries}, nvidia-modprobe {least},"
                f" nvidia-persistenced {least}",
                "Conflicts": "nvidia-smi",
                "Replaces": "nvidia-smi",
                "Provides": f"nvidia-smi (= {full})",
            },
            files={"/usr/bin/nvidia-smi": _file("nvidia_smi.py", 0o755)},
        ),
        package(
            "nvidia-driver",
            "NVIDIA driver, desktop components",
            relations={"Depends": f"libnvidia-gpucomp {same}, nvidia-modprobe {least}"},
        ),
        _daemon(
            package(
                "nvidia-persistenced",
                "daemon to maintain persistent software state in the NVIDIA driver",
                "nvidia-persistenced",
                relations={"Depends": f"adduser, python3, init-system-helpers, libnvidia-cfg1 {least}"},
                files={
                    "/usr/bin/nvidia-persistenced": _file("persistenced.py", 0o755),
                    f"{SHARE}/persistenced/version": _text(version),
                    f"{SHARE}/persistenced/standin_daemon.py": _file("standin_daemon.py"),
                    f"{UNITS}/nvidia-persistenced.service": _file("nvidia-persistenced.service"),
                },
            ),
            start=True,
            before="adduser --system --group --quiet --home /var/run/nvpd/ --no-create-home"
            " --gecos 'NVIDIA Persistence Daemon' nvpd",
        ),
        _daemon(
            package(
                "nvidia-fabricmanager",
                "Fabric Manager for NVSwitch based systems",
                "fabricmanager",
                relations={
                    "Depends": "python3, init-system-helpers",
                    "Provides": f"nvidia-fabricmanager-{branch} (= {full})",
                },
                files={
                    "/usr/bin/nv-fabricmanager": _file("fabricmanager.py", 0o755),
                    "/usr/bin/nvidia-fabricmanager-start.sh": _file("fabricmanager_start.sh", 0o755),
                    "/usr/share/nvidia/nvswitch/fabricmanager.cfg": _file("fabricmanager.cfg"),
                    f"{SHARE}/fabricmanager/version": _text(version),
                    f"{SHARE}/fabricmanager/standin_daemon.py": _file("standin_daemon.py"),
                    f"{UNITS}/nvidia-fabricmanager.service": _file("nvidia-fabricmanager.service"),
                },
            ),
            start=False,
        ),
        package(
            "nvidia-modprobe",
            "utility to load NVIDIA kernel modules and create device nodes",
            "nvidia-modprobe",
            files={"/usr/bin/nvidia-modprobe": _file("nvidia_modprobe.sh", 0o4755)},
        ),
        package("nvidia-settings", "tool for configuring the NVIDIA graphics driver", "nvidia-settings"),
        package("nvidia-xconfig", "X configuration tool for NVIDIA drivers", "nvidia-xconfig"),
        package("libnvidia-nscq", "NVSwitch Configuration and Query library", "libnvidia-nscq"),
        package("libnvsdm", "NVSwitch Device Monitoring library", "libnvsdm"),
        package("nvidia-imex", "NVIDIA Internode Memory Exchange service", "nvidia-imex"),
        package(
            "nvidia-open",
            "NVIDIA driver metapackage, open kernel modules",
            "nvidia-open",
            relations={
                "Depends": f"nvidia-kernel-open-dkms {least}, {both}",
                "Conflicts": "cuda-drivers",
            },
        ),
        package(
            "cuda-drivers",
            "NVIDIA driver metapackage, proprietary kernel modules",
            "cuda-drivers",
            relations={
                "Depends": f"nvidia-kernel-dkms {least}, {both}",
                "Conflicts": "nvidia-open",
            },
        ),
        package(
            f"cuda-drivers-{branch}",
            f"NVIDIA driver metapackage, branch {branch}, proprietary kernel modules",
            "cuda-drivers",
            relations={"Depends": f"nvidia-kernel-dkms {least}, {both}"},
        ),
    ]
    if int(branch) >= _FIRST_OPEN_ONLY:
        proprietary = ("nvidia-kernel-dkms", "cuda-drivers", f"cuda-drivers-{branch}")
        packages = [one for one in packages if one.name not in proprietary]
    return packages


def _with_modules(packages: list[Package], version: str) -> list[Package]:
    """Return a driver's packages with real modules: sources, DKMS's part of the scripts, and a modprobe."""
    sources = {
        f"/usr/src/nvidia-{version}/{path.name}": File(
            path.read_text(encoding="utf-8").replace("@VERSION@", version).encode()
        )
        for path in sorted((FILES / "dkms").iterdir())
    }
    # As dh_dkms writes them (debhelper's dkms add-on).
    scripts = {
        "postinst": "#!/bin/sh\nset -e\n"
        'if [ "$1" = configure ]; then\n'
        f'    /usr/lib/dkms/common.postinst nvidia {version} "" "" "$2"\nfi\n',
        "prerm": "#!/bin/sh\nset -e\n"
        f'if [ "$(dkms status -m nvidia -v {version})" ]; then\n'
        f"    dkms remove -m nvidia -v {version} --all\nfi\n",
    }
    changed = []
    for package in packages:
        if package.name in ("nvidia-kernel-open-dkms", "nvidia-kernel-dkms"):
            package = replace(package, files={**package.files, **sources}, scripts=scripts)
        elif package.name == "nvidia-modprobe":
            package = replace(
                package, files={"/usr/bin/nvidia-modprobe": _file("nvidia_modprobe_kernel.sh", 0o4755)}
            )
        changed.append(package)
    return changed


def _toolkit(toolkit: str) -> list[Package]:
    """Return the packages of one CUDA toolkit release: the compiler and what it needs, and the libraries'
    headers."""
    dashed = toolkit.replace(".", "-")
    meta, component = _TOOLKITS[toolkit]
    home, priority = f"/usr/local/cuda-{toolkit}", toolkit.replace(".", "")
    config = f"cuda-toolkit-{dashed}-config-common"

    def names(*stems: str) -> str:
        return ", ".join(f"{stem}-{dashed}" for stem in stems)

    def part(stem: str, *depends: str, files: dict[str, File] | None = None) -> Package:
        name = f"{stem}-{dashed}"
        relations = {
            "Depends": ", ".join(depend if depend == config else names(depend) for depend in depends)
        }
        return Package(name, component, name, f"CUDA Toolkit {toolkit}: {stem}", relations, files or {})

    def group(stem: str, *depends: str) -> Package:
        name = f"{stem}-{dashed}"
        return Package(
            name, meta, name, f"CUDA Toolkit {toolkit} metapackage: {stem}", {"Depends": names(*depends)}
        )

    libraries = (
        "libcublas",
        "libcufft",
        "libcurand",
        "libcusolver",
        "libcusparse",
        "libnvjitlink",
        "cuda-nvrtc",
    )
    developed = tuple(f"{stem}-dev" for stem in libraries)
    compiler = (FILES / "nvcc.sh").read_text(encoding="utf-8")
    compiler = compiler.replace("@RELEASE@", toolkit).replace("@VERSION@", component.split("-")[0])
    return [
        Package(
            config,
            component,
            config,
            f"Common config package for CUDA Toolkit {toolkit}",
            {"Depends": "cuda-toolkit-13-config-common, cuda-toolkit-config-common"},
            # The real package registers /usr/local/cuda as an alternative, the newest toolkit first.
            scripts={
                "postinst": "#!/bin/sh\nset -e\n"
                + "".join(
                    f"update-alternatives --install /usr/local/{name} {name} {home} {priority}\n"
                    for name in ("cuda", "cuda-13")
                ),
                "prerm": "#!/bin/sh\nset -e\n"
                + "".join(f"update-alternatives --remove {name} {home}\n" for name in ("cuda", "cuda-13")),
            },
            files={
                f"{home}/version.json": _json({"cuda": {"name": "CUDA SDK", "version": meta.split("-")[0]}})
            },
            architecture="all",
        ),
        part("cuda-crt"),
        part("libnvvm"),
        part("libnvptxcompiler"),
        part(
            "cuda-nvcc",
            "cuda-crt",
            "libnvvm",
            "libnvptxcompiler",
            files={f"{home}/bin/nvcc": File(compiler.encode(), 0o755)},
        ),
        *[
            part(stem)
            for stem in ("cuda-cuobjdump", "cuda-cuxxfilt", "cuda-nvprune", "cuda-cccl", "cuda-driver-dev")
        ],
        *[
            part(stem)
            for stem in ("cuda-culibos-dev", "cuda-cupti", "cuda-nvml-dev", "cuda-nvtx", "cuda-profiler-api")
        ],
        part("cuda-cudart", config),
        part("cuda-cudart-dev", "cuda-cudart", "cuda-driver-dev", "cuda-cccl", "cuda-culibos-dev"),
        *[part(stem) for stem in libraries],
        *[part(dev, stem) for dev, stem in zip(developed, libraries, strict=True)],
        group("cuda-compiler", "cuda-cuobjdump", "cuda-cuxxfilt", "cuda-nvcc", "cuda-nvprune"),
        group("cuda-minimal-build", "cuda-nvcc", "cuda-cudart-dev"),
        group("cuda-libraries", "cuda-cudart", *libraries),
        group("cuda-libraries-dev", "cuda-cudart-dev", "cuda-profiler-api", "cuda-nvml-dev", *developed),
        group("cuda-command-line-tools", "cuda-cupti", "cuda-nvtx"),
        group(
            "cuda-toolkit", "cuda-compiler", "cuda-libraries", "cuda-libraries-dev", "cuda-command-line-tools"
        ),
    ]


def _pinning(name: str, pattern: str, version: str) -> Package:
    """Return a pinning package: a file of apt preferences for one branch or one release."""
    package = f"nvidia-driver-pinning-{name}"
    kind = "version" if "." in name else "branch"
    preferences = (
        f"# Pins the NVIDIA driver packages to {kind} {name}; installed by {package}.\n"
        "Package: src:*nvidia*:any src:cuda-drivers:any src:cuda-compat:any\n"
        f"Pin: version {pattern}\nPin-Priority: 1000\n"
    )
    # apt reads a file without a suffix, or one called *.pref, and none with a dot elsewhere in its name.
    path = f"/etc/apt/preferences.d/nvidia-driver-pinning-{name.replace('.', '_')}"
    return Package(
        package,
        version,
        "driver-pinning",
        f"APT driver pinning file for driver {kind} {name}",
        {
            "Provides": "nvidia-driver-pinning",
            "Conflicts": "nvidia-driver-pinning",
            "Replaces": "nvidia-driver-pinning",
        },
        {path: File(preferences.encode())},
        architecture="all",
    )


def _cuda_keyring(platform: Platform, keyring: bytes, key_id: str) -> Package:
    """Return cuda-keyring: the public key, without the list file that would send a lab host to NVIDIA's
    server."""
    return Package(
        "cuda-keyring",
        "1.1-1",
        "cuda-keyring",
        f"GPG keyring for the CUDA repository ({platform.slug}, key {key_id})",
        files={"/usr/share/keyrings/cuda-archive-keyring.gpg": File(keyring)},
        architecture="all",
        section="multiverse/devel",
    )


def _daemon(package: Package, *, start: bool, before: str = "") -> Package:
    """Add the scripts of a package with a systemd service: enabled at once, and started if `start`."""
    unit = f"{package.name}.service"
    go = f"    deb-systemd-invoke start {unit} >/dev/null 2>&1 || true\n" if start else ""
    scripts = {
        "postinst": "#!/bin/sh\nset -e\n"
        'if [ "$1" = configure ]; then\n'
        + (f"    {before}\n" if before else "")
        + f"    deb-systemd-helper enable {unit} >/dev/null || true\n"
        "fi\n"
        "if [ -d /run/systemd/system ]; then\n"
        f"    systemctl --system daemon-reload >/dev/null || true\n{go}fi\n",
        "prerm": "#!/bin/sh\nset -e\n"
        'if [ "$1" = remove ] && [ -d /run/systemd/system ]; then\n'
        f"    deb-systemd-invoke stop {unit} >/dev/null || true\nfi\n",
        "postrm": "#!/bin/sh\nset -e\n"
        'if [ "$1" = purge ]; then\n'
        f"    deb-systemd-helper purge {unit} >/dev/null || true\nfi\n"
        "if [ -d /run/systemd/system ]; then\n    systemctl --system daemon-reload >/dev/null || true\nfi\n",
    }
    return replace(package, scripts=scripts)


def _empty(
    name: str,
    version: str,
    source: str,
    description: str,
    relations: dict[str, str],
    architecture: str = "amd64",
) -> Package:
    return Package(name, version, source, description, relations, architecture=architecture)


def _file(name: str, mode: int = 0o644) -> File:
    return File((FILES / name).read_bytes(), mode)


def _text(content: str) -> File:
    return File(f"{content}\n".encode())


def _json(content: object) -> File:
    return File((json.dumps(content) + "\n").encode())


def _gpus() -> File:
    return File(FILES.with_name("gpus.json").read_bytes())
