"use strict";
(() => {
  const root = document.documentElement;
  const status = document.getElementById("said");
  const say = (text) => { status.textContent = text; };

  // Colours: the system's, until the button is pressed.
  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const label = () => {
    theme.textContent = isDark() ? "Light colours" : "Dark colours";
    theme.setAttribute("aria-pressed", String(Boolean(root.dataset.theme)));
  };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  label();

  // Sorting. Numbers before texts, nothing last, whatever the direction; equal rows stay as they were.
  const value = (row, column) => {
    const raw = row.cells[column].dataset.v;
    if (raw === undefined || raw === "") return null;
    return Number.isNaN(Number(raw)) ? raw : Number(raw);
  };
  const compare = (a, b) => {
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
    return typeof a === "number" ? -1 : 1;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [value(row, column), row]);
        const known = rows.filter(([v]) => v !== null);
        known.sort(([a], [b]) => (rising ? compare(a, b) : compare(b, a)));
        body.append(...known.map(([, row]) => row), ...rows.filter(([v]) => v === null).map(([, row]) => row));
        say(`sorted by ${head.textContent.trim()}, ${rising ? "ascending" : "descending"}`);
      });
    });
  }

  // Legends. The names at the ends of the lines move to where they fit; see `spread` in scale.py.
  const spread = (wanted, gap, low, high) => {
    const count = wanted.length;
    const step = Math.min(gap, (high - low) / Math.max(1, count - 1));
    const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
    const pools = [];
    order.forEach((index, rank) => {
      pools.push([wanted[index] - rank * step, 1]);
      while (pools.length > 1) {
        const [last, before] = [pools.at(-1), pools.at(-2)];
        if (before[0] / before[1] <= last[0] / last[1]) break;
        pools.pop();
        before[0] += last[0];
        before[1] += last[1];
      }
    });
    const places = [];
    let rank = 0;
    for (const [sum, number] of pools) {
      const at = Math.min(Math.max(sum / number, low), high - (count - 1) * step);
      for (let i = 0; i < number; i += 1, rank += 1) places[order[rank]] = at + rank * step;
    }
    return places;
  };
  const arrange = (plot) => {
    const shown = [...plot.querySelectorAll(".series[data-y]:not(.off)")];
    const wanted = shown.map((one) => Number(one.dataset.y));
    const [low, high] = [Number(plot.dataset.low), Number(plot.dataset.high)];
    const places = spread(wanted, 14, low, high);
    // Names closer than this cover each other: then only the one that is pointed at is shown.
    plot.classList.toggle("crowded", shown.length > 1 && (high - low) / (shown.length - 1) < 9);
    shown.forEach((one, i) => {
      one.querySelector("text.end").setAttribute("y", places[i]);
      one.querySelector("path.leader").setAttribute(
        "d", `M${one.dataset.from} ${one.dataset.y} L${one.dataset.x} ${places[i]}`);
    });
  };
  for (const gallery of document.querySelectorAll("[data-toggles]")) {
    const buttons = [...gallery.querySelectorAll(".legend button[data-arm]")];
    const plots = [...gallery.querySelectorAll(".plot")];
    const set = (button, on) => {
      button.setAttribute("aria-pressed", String(on));
      for (const one of gallery.querySelectorAll(`.series[data-arm="${button.dataset.arm}"]`)) {
        one.classList.toggle("off", !on);
      }
    };
    const settle = () => plots.filter((plot) => plot.dataset.low).forEach(arrange);
    for (const button of buttons) {
      button.addEventListener("click", () => {
        set(button, button.getAttribute("aria-pressed") !== "true");
        settle();
      });
      const mark = (on) => () => {
        for (const plot of plots) plot.classList.toggle("marking", on);
        for (const one of gallery.querySelectorAll(`.series[data-arm="${button.dataset.arm}"]`)) {
          one.classList.toggle("marked", on);
        }
      };
      for (const [kind, on] of [["mouseenter", true], ["mouseleave", false], ["focus", true], ["blur", false]]) {
        button.addEventListener(kind, mark(on));
      }
    }
    for (const button of gallery.querySelectorAll("button[data-all]")) {
      button.addEventListener("click", () => {
        buttons.forEach((one) => set(one, button.dataset.all === "on"));
        settle();
      });
    }
  }

  // Copying. Without the clipboard's leave the text is selected, ready for the keyboard.
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      const done = (text) => { button.textContent = text; say(text); setTimeout(() => { button.textContent = "Copy"; }, 1500); };
      try {
        await navigator.clipboard.writeText(code.textContent);
        done("Copied");
      } catch {
        getSelection().selectAllChildren(code);
        done("Selected");
      }
    });
  }

  // What is folded away must be on paper too.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
})();
