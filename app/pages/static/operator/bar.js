// The bar above the operators' pages.
import { signOut } from "./call.js";

document.querySelector("#sign-out").addEventListener("click", signOut);
