/**
 * A client of alignserve, which embeds images and texts into one vector space and classifies images
 * against any labels.
 *
 * <p>Start at {@link com.alignserve.AlignClient}. The generated messages are in {@code
 * com.alignserve.v1}.
 */
package com.alignserve;
