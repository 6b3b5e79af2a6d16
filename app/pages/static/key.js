/** Name one wish, so that sending it again is harmless. Not `randomUUID`, which pages without TLS do not have. */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
