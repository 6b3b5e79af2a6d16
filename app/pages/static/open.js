/**
 * Tell whether a booking may go to a slot: what is only in the way of it is, perhaps, the booking itself.
 * `booking` has its `resource`, `starts_at`, `ends_at` and `quantity`.
 */
export function isOpenTo(slot, booking) {
  const overlaps = slot.starts_at < booking.ends_at && booking.starts_at < slot.ends_at;
  const own = slot.resource.id === booking.resource.id && overlaps && slot.available_count >= booking.quantity;
  return slot.status === "available" ? slot.available >= booking.quantity : slot.status === "sold_out" && own;
}
