// Hold the board to the types of its panels that Grafana publishes, without Grafana:
//   npm install --no-package-lock && node check.mjs
// The board is written out as TypeScript constants of Grafana's types, which the compiler then judges: a name
// that an option has not, or a value that it does not take, is an error. What Grafana's types leave open stays
// open: a panel's queries and the options of transformations.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";

const BOARD = new URL("../dashboards/operating_points.json", import.meta.url);
const OUT = new URL("board.gen.ts", import.meta.url);
const RAW = "@grafana/schema/dist/esm/raw";
const KINDS = {
  stat: ["stat", "Stat"],
  "state-timeline": ["statetimeline", "StateTimeline"],
  table: ["table", "Table"],
  timeseries: ["timeseries", "TimeSeries"],
  xychart: ["xychart", "XYChart"],
};

const { panels: shown, ...board } = JSON.parse(readFileSync(BOARD, "utf8"));
const lines = [
  `import type * as schema from "@grafana/schema";`,
  `import type { Dashboard, Panel, RowPanel } from "${RAW}/dashboard/x/dashboard_types.gen";`,
  ...Object.values(KINDS).map(
    ([folder, name]) =>
      `import type * as ${folder} from "${RAW}/composable/${folder}/panelcfg/x/${name}PanelCfg_types.gen";`,
  ),
  // JSON has an enumeration's values, not its names.
  "type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T",
  "  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;",
  `type Config = NonNullable<NonNullable<Panel["fieldConfig"]>["defaults"]>;`,
];
const declare = (type, value) => lines.push(`export const c${lines.length}: ${type} = ${JSON.stringify(value)};`);

declare(`Plain<Omit<Dashboard, "panels">>`, board);
const panels = shown.flatMap(({ panels: folded, ...panel }) => {
  if (panel.type !== "row") return [panel];
  declare(`Plain<Omit<RowPanel, "panels">>`, panel);
  return folded;
});
for (const { fieldConfig, options, targets, transformations, ...panel } of panels) {
  const [kind] = KINDS[panel.type];
  const { custom, mappings, ...defaults } = fieldConfig.defaults;
  declare(`Plain<Omit<Panel, "fieldConfig" | "options" | "targets" | "transformations">>`, panel);
  declare(`Partial<Plain<${kind}.Options>>`, options);
  declare(`Plain<Omit<Config, "mappings" | "custom">>`, defaults);
  declare(`Plain<schema.ValueMap>[]`, mappings);
  declare(`Plain<schema.DataTransformerConfig>[]`, transformations);
  if (custom) declare(`Partial<Plain<${kind}.FieldConfig>>`, custom);
}
writeFileSync(OUT, lines.join("\n") + "\n");
const options = ["--noEmit", "--skipLibCheck", "--strict", "--moduleResolution", "node", "--module", "esnext"];
try {
  execFileSync("node_modules/.bin/tsc", [...options, "--target", "es2022", "board.gen.ts"], {
    cwd: new URL(".", import.meta.url),
    stdio: "inherit",
  });
} catch {
  process.exit(1);
}
console.log(`${panels.length} panels are as Grafana's types want them`);
