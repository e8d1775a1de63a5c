# mypy: ignore-errors
"""Runs under the Python that has dnf's bindings (the distribution's own), not under ours.

Standard library and dnf only, and no syntax newer than Python 3.6, because EL8's platform-python is that
old; for the same reason neither type checks nor modern spelling are asked of this file.

Reads a request as JSON from standard input, writes the answer as JSON to standard output:

    request: cache, root, release, architecture, platform_id, repositories [{id, url, priority}],
             packages, groups, modules, excluded
    answer:  packages [{name, epoch, version, release, arch, sha256, size, repository, location, license}],
             modules {repository: path}, comps {repository: path}
             or error {kind, message, names}
"""

import json
import sys

import dnf
import dnf.exceptions
import dnf.module.module_base


def problem(kind, message, names=()):
    """An answer that says what is wrong."""
    return {"error": {"kind": kind, "message": message, "names": list(names)}}


def open_base(request):
    """A dnf base that knows the request's repositories and nothing of this host."""
    base = dnf.Base()
    conf = base.conf
    conf.cachedir = request["cache"]
    conf.installroot = request["root"]
    conf.persistdir = request["root"] + "/persist"
    conf.logdir = request["root"]
    conf.reposdir = []
    conf.pluginpath = []
    conf.plugins = False
    conf.module_platform_id = request["platform_id"]
    conf.substitutions["releasever"] = request["release"].split(".")[0]
    conf.substitutions["arch"] = request["architecture"]
    conf.substitutions["basearch"] = request["architecture"]
    conf.install_weak_deps = False
    conf.best = True
    conf.gpgcheck = False  # every signature is checked when the package is packed
    conf.skip_if_unavailable = False
    conf.metadata_expire = 0
    conf.timeout = 30
    conf.retries = 3
    for entry in request["repositories"]:
        repo = dnf.repo.Repo(entry["id"], conf)
        repo.baseurl = [entry["url"]]
        repo.gpgcheck = False
        repo.skip_if_unavailable = False
        if entry.get("priority"):
            repo.priority = entry["priority"]
        base.repos.add(repo)
    return base


def mark(base, request):
    """Mark what is wanted; returns an error answer or None."""
    excluded = base.sack.query().filter(name__glob=request["excluded"]) if request["excluded"] else None
    if excluded is not None:
        base.sack.add_excludes(excluded)
    wanted = request["packages"] + ["@" + name for name in request["groups"]]
    try:
        base.install_specs(wanted, strict=True)
    except dnf.exceptions.MarkingErrors as error:
        names = list(error.no_match_pkg_specs) + list(error.error_pkg_specs)
        names += list(error.no_match_group_specs) + list(error.error_group_specs)
        return problem("missing", "no repository offers it", sorted(set(names)))
    return None


def answer(base):
    """What the transaction would install, and where the metadata lies."""
    packages = []
    for package in base.transaction.install_set:
        kind, digest = package.returnIdSum()
        if kind != "sha256":
            return problem("checksum", f"{package} has a {kind} checksum, not SHA-256")
        packages.append(
            {
                "name": package.name,
                "epoch": int(package.epoch),
                "version": package.version,
                "release": package.release,
                "arch": package.arch,
                "sha256": digest,
                "size": int(package.downloadsize),
                "repository": package.reponame,
                "location": package.location,
                "license": package.license or "",
            }
        )
    packages.sort(key=lambda entry: (entry["name"], entry["arch"], entry["version"], entry["release"]))
    metadata = {"modules": {}, "comps": {}}
    for repo in base.repos.iter_enabled():
        for kind, names in (("modules", ("modules",)), ("comps", ("group_gz", "group"))):
            for name in names:
                path = repo.get_metadata_path(name)
                if path:
                    metadata[kind][repo.id] = path
                    break
    return dict(packages=packages, **metadata)


def resolve(request):
    """From request to answer."""
    base = open_base(request)
    try:
        try:
            base.fill_sack(load_system_repo=False, load_available_repos=True)
        except dnf.exceptions.RepoError as error:
            return problem("repository", str(error))
        if request["modules"]:
            try:
                dnf.module.module_base.ModuleBase(base).enable(request["modules"])
            except dnf.exceptions.MarkingErrors as error:
                names = list(error.no_match_group_specs) + list(error.error_group_specs)
                return problem("module", "no repository offers this stream", names or request["modules"])
        base.read_comps(arch_filter=True)
        refused = mark(base, request)
        if refused:
            return refused
        try:
            base.resolve(allow_erasing=False)
        except dnf.exceptions.DepsolveError as error:
            return problem("conflict", str(error))
        return answer(base)
    finally:
        base.close()


if __name__ == "__main__":
    # dnf's libraries write warnings to standard output at times: only the answer may stand there.
    stream = sys.stdout
    sys.stdout = sys.stderr
    json.dump(resolve(json.load(sys.stdin)), stream)
