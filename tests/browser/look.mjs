// Open pages in Chromium as people do: wide and on a phone, light and dark, with the keyboard.
//
//   node look.mjs < {"pages": {"name": "file:///..."}, "views": ["phone"], "screenshots": "/folder"}
//
// Prints a JSON list, one entry a page and view: what tests/pages/test_in_a_browser.py judges. Nothing leaves this machine.
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { chromium as driver } from "playwright-core";

const home = join(dirname(fileURLToPath(import.meta.url)), "node_modules", ".chromium");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const VIEWS = [
  { name: "desktop", width: 1280, height: 900, colorScheme: "light" },
  { name: "desktop-dark", width: 1280, height: 900, colorScheme: "dark" },
  { name: "phone", width: 360, height: 740, colorScheme: "light", phone: true },
  { name: "phone-dark", width: 360, height: 740, colorScheme: "dark", phone: true },
];
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--proxy-server=127.0.0.1:9", "--font-render-hinting=none",
];

/** The package's Chromium with its libraries and fonts, unpacked once, so that it looks alike on every machine. */
async function unpacked() {
  if (!existsSync(home)) {
    const { TMPDIR, AWS_EXECUTION_ENV } = process.env;
    const part = `${home}-${process.pid}`;
    // The package unpacks into TMPDIR; the libraries come along where it believes to be on Amazon Linux.
    Object.assign(process.env, { TMPDIR: part, AWS_EXECUTION_ENV: "AWS_Lambda_nodejs24.x" });
    mkdirSync(part);
    const { default: chromium } = await import("@sparticuz/chromium");
    await chromium.executablePath();
    writeFileSync(join(part, "fonts.conf"), `<fontconfig><dir>${home}/fonts</dir><cachedir>${home}/cache</cachedir></fontconfig>`);
    try {
      renameSync(part, home);
    } catch {
      rmSync(part, { recursive: true }); // another process was quicker
    }
    restore({ TMPDIR, AWS_EXECUTION_ENV });
  }
  return {
    executablePath: join(home, "chromium"),
    env: { ...process.env, LD_LIBRARY_PATH: join(home, "al2023", "lib"), FONTCONFIG_FILE: join(home, "fonts.conf") },
  };
}

function restore(variables) {
  for (const [name, value] of Object.entries(variables)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
}

async function look(browser, name, url, view, screenshots) {
  const { width, height, colorScheme, phone = false } = view;
  const context = await browser.newContext({
    viewport: { width, height }, colorScheme, isMobile: phone, hasTouch: phone,
  });
  const page = await context.newPage();
  const seen = { page: name, view: view.name, console: [], requests: [] };
  page.on("console", (message) => seen.console.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => seen.console.push(`pageerror: ${error.message}`));
  page.on("request", (request) => { if (!request.url().startsWith("data:")) seen.requests.push(request.url()); });
  await page.goto(url, { waitUntil: "load" });
  if (screenshots) await page.screenshot({ path: join(screenshots, `${name}-${view.name}.png`), fullPage: true });

  seen.title = await page.title();
  seen.headings = await page.locator("h1, h2, h3").allInnerTexts();
  seen.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  seen.background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  seen.pictures = await page.evaluate(async () => {
    const all = [...document.images];
    await Promise.allSettled(all.map((image) => image.decode()));
    return { count: all.length, broken: all.filter((image) => !image.naturalWidth).length };
  });
  seen.tree = await page.locator("body").ariaSnapshot();
  seen.sliders = [];
  for (const slider of await page.locator("[data-slider]").all()) seen.sliders.push(await slide(page, slider));
  for (const summary of await page.locator("details > summary").all()) {
    await summary.focus();
    await page.keyboard.press("Enter");
  }
  seen.opened = await page.locator("details:not([open])").count() === 0;
  seen.overflowOpened = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  seen.violations = await check(page);
  await context.close();
  return seen;
}

/** Move a slider with the keyboard: what it shows at its end, one to the left, and at its start. */
async function slide(page, slider) {
  const input = slider.locator("input[type=range]");
  const now = async () => ({
    value: Number(await input.inputValue()),
    words: await slider.locator("output").innerText(),
    spoken: await input.getAttribute("aria-valuetext"),
    visible: await slider.locator("[data-frame]:visible").count(),
    shown: await slider.locator("[data-frame]:visible img").getAttribute("src"),
  });
  await input.focus();
  const states = [];
  for (const key of ["End", "ArrowLeft", "Home"]) {
    await page.keyboard.press(key);
    states.push(await now());
  }
  return { frames: await slider.locator("[data-frame]").count(), states };
}

/** What axe-core finds serious or critical, with everything folded out. It is run beside the page's own script policy. */
async function check(page) {
  await page.evaluate(`${axe}; undefined`);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map((one) => ({
    id: one.id, impact: one.impact, help: one.help, nodes: one.nodes.slice(0, 5).map((node) => node.html.slice(0, 200)),
  }));
}

const { pages, views, screenshots } = JSON.parse(await text(process.stdin));
const browser = await driver.launch({ ...await unpacked(), args: FLAGS });
try {
  const all = [];
  for (const [name, url] of Object.entries(pages)) {
    for (const view of VIEWS.filter((one) => !views || views.includes(one.name))) {
      all.push(await look(browser, name, url, view, screenshots));
    }
  }
  console.log(JSON.stringify(all));
} finally {
  await browser.close();
}
