// Colours: Okabe and Ito's for networks and classes, viridis for amounts. Never the only sign of anything.

export const dark = matchMedia("(prefers-color-scheme: dark)");

export function theme() {
  return dark.matches
    ? { paper: "#171b20", ink: "#e9ecef", soft: "#a9b2bd", line: "#323a43", faint: "#4a545f", accent: "#56b4e9", residual: "#56b4e9", plain: "#e69f00", series: ["#56b4e9", "#e69f00", "#2fbf94", "#e58fbf", "#f0e442", "#c9ced6"] }
    : { paper: "#ffffff", ink: "#16191d", soft: "#565e69", line: "#dfe3e8", faint: "#aab2bc", accent: "#0072b2", residual: "#0072b2", plain: "#d55e00", series: ["#0072b2", "#d55e00", "#00805d", "#b0508a", "#8a6d00", "#444b54"] };
}

export const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 4], [1, 4]];

const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];

// A share in [0, 1] -> [red, green, blue].
export function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((value, i) => Math.round(value + (place - low) * (VIRIDIS[low + 1][i] - value)));
}

export const hex = (rgb) => "#" + rgb.map((value) => value.toString(16).padStart(2, "0")).join("");
