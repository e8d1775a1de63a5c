"""The three boot menus of the medium: isolinux (BIOS) and GRUB (UEFI, on the ISO and inside its EFI image).

Everything before the vendor's first entry stays (modules, colours, fonts); the entries are ours. Pure
functions from text to text, with golden files in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.errors import InputError
from iso.label import escape

UNATTENDED_KICKSTART = "ks.cfg"
QUESTIONS_KICKSTART = "ks-questions.cfg"


@dataclass(frozen=True)
class Entry:
    """A menu entry: `arguments` after the medium's own; without a title accelerator `^` for GRUB."""

    name: str
    title: str
    arguments: tuple[str, ...] = ()
    local: bool = False


@dataclass(frozen=True)
class Menu:
    """What the menus say. The first entry is the default, taken after `seconds`."""

    title: str
    label: str
    seconds: int
    entries: tuple[Entry, ...]

    def medium_argument(self) -> str:
        """Where the installer's runtime is."""
        return f"inst.stage2=hd:LABEL={escape(self.label)}"


def installer_menu(title: str, label: str, seconds: int, arguments: Sequence[str] = ()) -> Menu:
    """The product's menu: unattended first, then with questions, media check, rescue, local disk."""
    medium = f"hd:LABEL={escape(label)}"
    unattended = (f"inst.ks={medium}:/{UNATTENDED_KICKSTART}", *arguments)
    questions = (f"inst.ks={medium}:/{QUESTIONS_KICKSTART}", *arguments)
    return Menu(
        title=title,
        label=label,
        seconds=seconds,
        entries=(
            Entry("install", f"^Install {title}: no question asked, the disk is erased", unattended),
            Entry("questions", f"Install {title} with ^questions", questions),
            # A failing check stops hard, so it is never the default of a machine without a keyboard.
            Entry("check", f"^Check this medium, then install {title}", (*unattended, "rd.live.check")),
            Entry("rescue", "^Rescue an installed system", ("inst.rescue", *arguments)),
            Entry("local", "Boot from the local ^disk", local=True),
        ),
    )


def isolinux(base: str, menu: Menu, name: str = "isolinux/isolinux.cfg") -> str:
    """`isolinux.cfg` with our entries; raises InputError if the vendor's has no Linux entry."""
    lines = base.splitlines()
    first = _first(lines, r"\s*label\s", name)
    kernel, ramdisk = _isolinux_files(lines[first:], name)
    head = [
        line
        for line in lines[:first]
        if not re.match(r"\s*(timeout|menu\s+(title|separator|begin))\b", line, re.I)
    ]
    while head and not head[-1].strip():
        head.pop()
    # 0 would wait for ever; the unit is a tenth of a second.
    made = [*head, f"menu title {menu.title}", f"timeout {max(1, menu.seconds * 10)}", ""]
    for entry in menu.entries:
        made += [f"label {entry.name}", f"  menu label {entry.title}"]
        if entry is menu.entries[0]:
            made.append("  menu default")
        if entry.local:
            made.append("  localboot 0xffff")
        else:
            words = (f"initrd={ramdisk}", menu.medium_argument(), *entry.arguments, "quiet")
            made += [f"  kernel {kernel}", f"  append {' '.join(words)}"]
        made.append("")
    return "\n".join(made)


def _isolinux_files(lines: Sequence[str], name: str) -> tuple[str, str]:
    kernel = ""
    for line in lines:
        if found := re.match(r"\s*(?:kernel|linux)\s+(\S+)", line, re.I):
            kernel = found[1]
        elif (found := re.match(r"\s*append\s.*?\binitrd=(\S+)", line, re.I)) and kernel:
            return kernel, found[1]
    raise InputError(f"{name} of the base ISO starts no Linux", "name an AlmaLinux 8 installer ISO")


def grub(base: str, menu: Menu, name: str = "EFI/BOOT/grub.cfg") -> str:
    """`grub.cfg` with our entries and label; raises InputError if the vendor's has no Linux entry."""
    lines = base.splitlines()
    first = _first(lines, r"\s*(menuentry|submenu)\b", name)
    command, kernel, ramdisk_command, ramdisk = _grub_files(lines[first:], name)
    head = []
    searched = False
    for line in lines[:first]:
        if re.match(r"\s*set\s+default=", line):
            head.append('set default="0"')
        elif re.match(r"\s*set\s+timeout=", line):
            head.append(f"set timeout={menu.seconds}")
        elif re.match(r"\s*search\b.*(\s-l\s|--label\b)", line):
            # GRUB compares with the label as it is: never escaped here.
            head.append(f"search --no-floppy --set=root -l '{menu.label}'")
            searched = True
        else:
            head.append(line)
    if not searched:
        raise InputError(
            f"{name} of the base ISO does not search for its medium", "name an AlmaLinux 8 installer ISO"
        )
    while head and not head[-1].strip():
        head.pop()
    made = [*head, ""]
    for entry in menu.entries:
        title = entry.title.replace("^", "").replace("'", "")
        made.append(f"menuentry '{title}' --id {entry.name} {{")
        if entry.local:
            made.append("\texit")
        else:
            words = (menu.medium_argument(), *entry.arguments, "quiet")
            made += [
                f"\t{command} {kernel} {' '.join(map(_grub_word, words))}",
                f"\t{ramdisk_command} {ramdisk}",
            ]
        made.append("}")
    return "\n".join(made) + "\n"


def _grub_word(word: str) -> str:
    # GRUB's shell eats a backslash outside of quotes.
    return f"'{word}'" if "\\" in word or "'" in word else word


def _grub_files(lines: Sequence[str], name: str) -> tuple[str, str, str, str]:
    linux: tuple[str, str] | None = None
    for line in lines:
        if found := re.match(r"\s*(linux(?:efi|16)?)\s+(\S+)", line):
            linux = (found[1], found[2])
        elif (found := re.match(r"\s*(initrd(?:efi|16)?)\s+(\S+)", line)) and linux:
            return (*linux, found[1], found[2])
    raise InputError(f"{name} of the base ISO starts no Linux", "name an AlmaLinux 8 installer ISO")


def _first(lines: Sequence[str], pattern: str, name: str) -> int:
    for number, line in enumerate(lines):
        if re.match(pattern, line, re.I):
            return number
    raise InputError(f"{name} of the base ISO has no menu entry", "name an AlmaLinux 8 installer ISO")


def labels_in(text: str) -> set[str]:
    """Every label that a menu names, as it stands there, except escaped ones (given unescaped)."""
    from iso.label import unescape

    plain = set(re.findall(r"\s-l\s+'([^']*)'", text))
    return plain | {unescape(found) for found in re.findall(r"hd:LABEL=([^\s:']+)", text)}
