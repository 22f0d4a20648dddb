// The sample browser. Every text is put in as text: answers are a model's, questions a data set's.
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const { rows, samples, pictures } = JSON.parse(source.textContent);
  const PAGE = 10;
  const find = (id) => document.getElementById(id);
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const numbered = rows.map((row, index) => ({ ...row, index }));
  const full = numbered.filter((row) => row.is_full);
  const pruned = numbered.filter((row) => !row.is_full);
  const names = [...new Set(pruned.map((row) => row.name))];
  const hidden = new Set(names.filter((name) => !pruned.some((row) => row.name === name && row.main)));
  const unique = (values) => [...new Set(values)];
  let start = 0;

  // What is chosen.
  const budget = () => find("budget").value;
  const offered = () => pruned.filter((row) => !budget() || row.budget === budget());
  const shown = () => offered().filter((row) => !hidden.has(row.name));

  const score = (sample, index) => sample.answers[index]?.[1] ?? null;
  const change = (sample, row) => {
    const [mine, whole] = [score(sample, row.index), row.full === null ? null : score(sample, row.full)];
    return mine === null || whole === null ? 0 : mine - whole;
  };
  const outcomes = {
    "": () => true,
    lost: (sample, asked) => asked.some((row) => change(sample, row) < 0),
    gained: (sample, asked) => asked.some((row) => change(sample, row) > 0),
    split: (sample, asked) => unique(asked.map((row) => score(sample, row.index)).filter((s) => s !== null)).length > 1,
  };

  const matching = () => {
    const [task, words, outcome, chosen] = ["task", "words", "outcome", "method"].map((id) => find(id).value);
    const method = find("method").disabled ? "" : chosen;
    const wanted = words.trim().toLowerCase();
    const asked = shown().filter((row) => !method || row.name === method);
    return samples.filter(
      (sample) =>
        (!task || sample.task === task) &&
        sample.question.toLowerCase().includes(wanted) &&
        outcomes[outcome](sample, asked),
    );
  };

  // A picture with the patches that went grey and pale, and a line around those that stayed.
  const draw = async (canvas, uri, mask, side) => {
    const image = new Image();
    image.src = uri;
    try {
      await image.decode();
    } catch {
      canvas.replaceWith(make("p", { className: "pale", textContent: "its picture cannot be read" }));
      return;
    }
    const scale = Math.max(1, Math.round(320 / image.naturalWidth));
    const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    if (mask) {
      const bits = atob(mask);
      const stays = (x, y) => {
        if (x < 0 || y < 0 || x >= side || y >= side) return false;
        const patch = y * side + x;
        return Boolean((bits.charCodeAt(patch >> 3) >> (patch & 7)) & 1);
      };
      const pixels = context.getImageData(0, 0, width, height);
      for (let y = 0, at = 0; y < height; y++) {
        for (let x = 0; x < width; x++, at += 4) {
          if (stays(Math.floor((x * side) / width), Math.floor((y * side) / height))) continue;
          const [red, green, blue] = pixels.data.subarray(at, at + 3);
          pixels.data.fill(0.35 * (0.299 * red + 0.587 * green + 0.114 * blue) + 0.65 * 255, at, at + 3);
        }
      }
      context.putImageData(pixels, 0, 0);
      context.strokeStyle = "#000000";
      context.lineWidth = 1;
      const [px, py] = [width / side, height / side];
      context.beginPath();
      for (let y = 0; y <= side; y++) {
        for (let x = 0; x <= side; x++) {
          if (x < side && stays(x, y - 1) !== stays(x, y)) {
            context.moveTo(x * px, y * py);
            context.lineTo((x + 1) * px, y * py);
          }
          if (y < side && stays(x - 1, y) !== stays(x, y)) {
            context.moveTo(x * px, y * py);
            context.lineTo(x * px, (y + 1) * py);
          }
        }
      }
      context.stroke();
    }
    canvas.dataset.drawn = "";
  };

  const verdict = (value) => {
    if (value === null) return make("span", { className: "pale", textContent: "not scored" });
    if (value === 1) return make("span", { className: "ok", textContent: "✓ right" });
    if (value === 0) return make("span", { className: "bad", textContent: "✗ wrong" });
    return make("span", { textContent: `score ${Number(value.toFixed(3))}` });
  };

  const seen = (sample, masks, side, label) =>
    sample.pictures
      .map((number, index) => [pictures[number], masks?.[index]])
      .filter(([uri]) => uri)
      .map(([uri, mask]) => {
        const canvas = make("canvas", { width: 320, height: 320 });
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", label);
        draw(canvas, uri, mask, side);
        return canvas;
      });

  const ones = (mask) => {
    let found = 0;
    for (const byte of atob(mask)) for (let rest = byte.charCodeAt(0); rest; rest &= rest - 1) found++;
    return found;
  };

  const panel = (sample, row) => {
    const head = make("figcaption", {}, make("strong", { textContent: row.name }));
    const figure = make("figure", { className: row.is_full ? "panel full" : "panel" }, head);
    figure.dataset.row = row.index;
    const answer = sample.answers[row.index];
    if (!answer) {
      figure.append(make("p", { className: "pale", textContent: "not asked" }));
      return figure;
    }
    const [text, value, masks, merged, words] = answer;
    figure.prepend(...seen(sample, masks, row.side, masks ? `the patches that ${row.name} kept` : "the whole picture"));
    const about = row.is_full || budget() ? [] : [row.budget];
    if (masks) about.push(`${masks.reduce((sum, mask) => sum + ones(mask), 0)} patches`);
    if (merged) about.push("merged");
    if (about.length) head.append(make("span", { className: "pale", textContent: about.join(" · ") }));
    figure.append(
      make("p", { className: "verdict" }, verdict(value)),
      make("p", { className: "answer", dir: "auto", textContent: text || "(empty)" }),
    );
    if (words.length) figure.append(make("p", { className: "pale", textContent: `guided by: ${words.join(", ")}` }));
    return figure;
  };

  const item = (sample, visible) => {
    const panels = [...full, ...visible].map((row) => panel(sample, row));
    const whole = full.length ? [] : seen(sample, null, null, "the whole picture");
    if (whole.length) panels.unshift(make("figure", { className: "panel full" }, ...whole));
    const entry = make(
      "li",
      {},
      make("p", { className: "pale", textContent: `${sample.task} · ${sample.id}` }),
      make("h3", { className: "question", dir: "auto", textContent: sample.question || "(no question)" }),
      make("p", { className: "target" }, "expected: ", make("strong", { dir: "auto", textContent: sample.target })),
      make("div", { className: "panels" }, ...panels),
    );
    entry.dataset.sample = `${sample.task} ${sample.id}`;
    return entry;
  };

  const update = () => {
    find("method").disabled = !["lost", "gained"].includes(find("outcome").value);
    const [found, visible] = [matching(), shown()];
    start = Math.min(start, Math.max(0, Math.floor((found.length - 1) / PAGE) * PAGE));
    const page = found.slice(start, start + PAGE);
    find("count").textContent = `${found.length} of ${samples.length} samples`;
    find("place").textContent = page.length ? `${start + 1}–${start + page.length} of ${found.length}` : "";
    const [some, every] = [visible, offered()].map((those) => unique(those.map((row) => row.name)).length);
    find("shown-count").textContent = `${some} of ${every}`;
    for (const button of document.querySelectorAll(".previous")) button.disabled = start === 0;
    for (const button of document.querySelectorAll(".next")) button.disabled = start + PAGE >= found.length;
    find("list").start = start + 1;
    find("list").replaceChildren(...page.map((sample) => item(sample, visible)));
  };

  const options = (select, values) =>
    select.append(...values.map((value) => make("option", { value, textContent: value })));

  // The methods of the chosen budget: as boxes, and those shown as choices of the filter.
  const choices = () => {
    const select = find("method");
    const before = select.value;
    select.replaceChildren(make("option", { value: "", textContent: "any method shown" }));
    options(select, unique(shown().map((row) => row.name)));
    select.value = before;
    if (select.selectedIndex < 0) select.value = "";
  };
  const boxes = () =>
    find("methods").replaceChildren(
      ...unique(offered().map((row) => row.name)).map((name) => {
        const box = make("input", { type: "checkbox", checked: !hidden.has(name) });
        box.addEventListener("change", () => {
          if (box.checked) hidden.delete(name);
          else hidden.add(name);
          choices();
          update();
        });
        return make("label", {}, box, make("span", { textContent: name }));
      }),
    );
  const again = () => {
    start = 0;
    boxes();
    choices();
    update();
  };

  options(find("task"), unique(samples.map((sample) => sample.task)));
  const budgets = unique(pruned.map((row) => row.budget));
  options(find("budget"), budgets);
  const of = (name) => pruned.filter((row) => row.budget === name).length;
  find("budget").value = budgets.reduce((best, name) => (of(name) > of(best) ? name : best), budgets[0] ?? "");
  for (const id of ["task", "outcome", "method", "words"]) {
    find(id).addEventListener("input", () => {
      start = 0;
      update();
    });
  }
  find("budget").addEventListener("input", again);
  for (const [id, all] of [["every", true], ["none", false]]) {
    find(id).addEventListener("click", () => {
      for (const row of offered()) hidden[all ? "delete" : "add"](row.name);
      again();
    });
  }
  const turn = (step) => {
    start += step;
    update();
    find("count").scrollIntoView({ block: "nearest" });
  };
  for (const button of document.querySelectorAll(".previous")) button.addEventListener("click", () => turn(-PAGE));
  for (const button of document.querySelectorAll(".next")) button.addEventListener("click", () => turn(PAGE));
  again();
  find("browser").hidden = false;
})();
