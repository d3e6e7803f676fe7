"""Word lists for changing captions: which words name the same thing, and what may stand in whose place.

A line is a family, ``offered / offered: replaceable, replaceable: recognised, recognised``. A word of a family never
replaces another one of it, and a family that any caption of an image names is never offered for that image. What stands
before the colons may be put into a caption and be replaced; what stands between them is only replaced, since it is too
special, too vague or true of nearly every picture; what stands behind them is only recognised. ``~`` marks nouns
without a plural, ``*`` nouns without a singular.
"""

from __future__ import annotations

# Slot -> families. A noun is replaced by one of the same slot and of the same grammatical number.
OBJECTS: dict[str, str] = {
    "adult": """
        man: guy, gentleman, dude, male, father, dad, grandfather, husband, businessman, fisherman, fireman, \
            groom, cowboy
        woman: lady, female, mother, mom, grandmother, wife, businesswoman, bride, cowgirl, mum
    """,
    "child": """
        boy: son, brother
        girl: daughter, sister, schoolgirl
    """,
    "minor": """
        : child, kid, toddler, baby, infant, youngster
    """,
    "role": """
        soldier / clown / firefighter / chef / nurse: policeman, police officer, officer, cop, sailor, waiter, \
            waitress
        : : adult, parent, grown-up
    """,
    "person": """
        : person, human, individual, worker, hiker, climber, rock climber, biker, bicyclist, cyclist, skier, \
            snowboarder, skateboarder, surfer, rider, runner, swimmer, diver, dancer, performer, teenager, \
            athlete, backpacker, motorcyclist, tourist, pedestrian, skater, kayaker, mountain climber
    """,
    "animal": """
        dog: puppy, pup, hound, doggy, terrier, boston terrier, retriever, golden retriever, labrador, lab, \
            black lab, yellow lab, chocolate lab, poodle, collie, border collie, husky, greyhound, dachshund, \
            bulldog, pug, boxer, beagle, chihuahua, dalmatian, spaniel, cocker spaniel, german shepherd, shepherd, \
            pit bull, pitbull, corgi, schnauzer, sheepdog, mutt, canine, rottweiler, doberman, wolf, great dane
        cat: kitten, kitty, feline
        horse / donkey: pony, foal, mule, colt, stallion, mare, zebra
        cow / goat: bull, ox, calf, cattle, lamb, ram, buffalo, bison, steer, ~sheep
        monkey: chimpanzee, gorilla, ape, orangutan
        bear: polar bear, panda, grizzly, cub
        fox: coyote
        pig: hog, piglet, boar
        rabbit: bunny, hare
        elephant: rhino, rhinoceros, hippo, giraffe, camel
        : bird, duck, goose, swan, seagull, gull, pigeon, parrot, eagle, penguin, flamingo, chicken, rooster, \
            hen, turkey
        : ~fish, shark, whale, dolphin, turtle, crocodile, alligator, lizard, snake, frog, squirrel, mouse, \
            rat, deer, insect, butterfly, bee, centipede, spider, crab, seal, lion, tiger, kangaroo
    """,
    "garment": """
        hat: cap, helmet, beanie, bonnet, visor, headband, bandanna, bandana, hood, turban, headscarf, \
            baseball cap, cowboy hat, crown, hoodie, hooded
        scarf: shawl
        backpack: bag, pack, purse, rucksack, handbag, satchel, suitcase, ~luggage
        coat / vest: jacket, sweater, sweatshirt, raincoat, parka, life vest, life jacket, lifejacket, \
            cardigan, blazer, suit, tuxedo, robe, cape, overcoat, wetsuit
        dress: skirt, gown, kimono, tutu, swimsuit, bathing suit, bikini, leotard, sundress, kilt
        apron:
        tie: necktie, bow tie, bowtie, collar, necklace, tag
        : shirt, t-shirt, t shirt, tee shirt, tee, blouse, top, tank top, jersey, tshirt, polo, undershirt
        : uniform, costume, outfit, harness, mask, belt, wig, ~makeup, ~camouflage
    """,
    "garments": """
        *gloves / *mittens:
        *boots / *sandals: *shoes, *sneakers, *flip flops, *slippers, *heels, shoe, boot, *flip-flops, *cleats, *socks
        *sunglasses: *glasses, *goggles, *eyeglasses
        *headphones: *earphones
        : *jeans, *pants, *trousers, *shorts, *trunks, *swim trunks, *leggings, *tights, *overalls, *pajamas, *khakis
    """,
    "portable": """
        ball: tennis ball, soccer ball, football, baseball, basketball, beach ball, volleyball, rugby ball, \
            softball, snowball
        frisbee: disc, disk, flying disc, ring
        stick: branch, twig, log, plank, bat, pole, pipe, cane, sword, spear, ~wood, paddle, oar, rod, fishing \
            rod, bone, stump
        rope: leash, string, chain, hose, cord, whip, wire, cable
        umbrella: parasol
        camera: video camera
        book / newspaper: magazine, ~paper, map, letter
        phone: cellphone, cell phone, telephone
        cup / bottle: mug, glass, can, drink, beer, soda, ~coffee, ~wine, juice box, ~juice, ~beverage
        bucket / basket: pail, box, tray, basin
        balloon: bubble
        flag / sign: banner, poster
        kite:
        teddy bear: doll, stuffed animal, stuffed toy, stuffed bear
        broom / shovel: rake, mop
        towel / pillow: blanket, cloth, cushion, rag, sheet
        : toy, chew toy
        : gun, rifle, pistol, weapon, water gun, knife
    """,
    "ridden": """
        bicycle: bike, cycle, mountain bike, tricycle, bmx bike, unicycle, dirt bike, bmx, three wheeler
        motorcycle: motorbike, moped, atv, four wheeler, quad, scooter
        skateboard: longboard, snowboard, surfboard, wakeboard: board
        camel / donkey: horse, pony
    """,
    "vehicle": """
        car / truck / bus / van: jeep, suv, taxi, cab, automobile, pickup, pickup truck, fire truck, minivan, \
            toy car, race car
        tractor: bulldozer, forklift
        boat: canoe, kayak, raft, ship, sailboat, yacht, ferry, rowboat, speedboat, motorboat, tube, \
            innertube, inner tube
        train: subway, trolley, tram, railroad
        helicopter: airplane, plane, jet
        : wagon, cart, carriage, sled, stroller, wheelchair, snowmobile, golf cart, shopping cart, jet ski, buggy
    """,
    "furniture": """
        bench: picnic bench
        couch: sofa, loveseat
        chair / stool: seat, armchair, recliner, rocking chair, lounge chair, lawn chair, high chair
        bed: mattress, crib, hammock, cot
        table: desk, picnic table, counter, coffee table
        : : rug, carpet, mat, ladder, ramp
    """,
    "structure": """
        fence: railing, gate, barrier, rail, ~fencing
        brick wall: wall, climbing wall, rock wall
        tent: canopy, awning
        statue / sculpture: monument, mannequin
        fountain: sprinkler, waterfall
        bridge: overpass, dock, pier, boardwalk
        windmill / lighthouse: tower
        : tree, bush, ~shrubbery, palm tree, plant, trunk
        : building, house, store, shop, church, skyscraper, garage, barn, hut, door, window, doorway
        : rock, boulder, stone, cliff, hill, mountain
    """,
    "instrument": """
        guitar / violin: cello, banjo, bass, ukulele, harp, fiddle
        drum: ~drums, tambourine
        trumpet / saxophone: flute, horn, trombone, tuba, clarinet
        piano: keyboard, accordion
        : microphone, instrument
    """,
    "sport": """
        ~soccer / ~football: ~rugby, ~american football
        ~tennis: ~badminton, ~ping pong
        ~basketball: ~netball
        ~baseball: ~softball, ~cricket
        ~hockey: ~ice hockey, ~lacrosse, ~field hockey
        ~volleyball: ~beach volleyball
        ~golf: ~croquet
        ~chess: ~cards
    """,
    "food": """
        sandwich / hamburger: hotdog, hot dog, burger, taco, corndog
        apple / banana: orange, pear, ~fruit, strawberry, ~watermelon, peach, lemon
        cookie / cupcake / doughnut: cake, donut, muffin, cracker, birthday cake
        lollipop: popsicle, ~candy, ice cream cone, ~ice cream, ~cotton candy
        carrot: ~corn, vegetable, tomato, ~broccoli, potato
        : ~pizza, ~bread, ~spaghetti, ~pasta, ~rice, ~meat, ~soup, ~cereal, ~cheese, egg, ~salad, ~popcorn, ~hay
    """,
}

# A slot whose nouns are replaced by those of another one: a child by an adult, whoever climbs by a clown.
OFFERED_BY = {"minor": "adult", "person": "role"}

# Words wider than every family of their slot. One of them does not keep a member from being offered, since what it
# replaces is a member too; in the plural it may speak of several, and does.
WIDER: dict[str, str] = {
    "adult": (
        "adult, person, human, someone, somebody, individual, worker, hiker, climber, biker, bicyclist, cyclist, "
        "skier, snowboarder, skateboarder, surfer, player, rider, runner, swimmer, diver, dancer, performer, "
        "musician, artist, athlete, teenager, teen, student, teacher, motorcyclist, racer, driver, skater, "
        "kayaker, guitarist, singer, pedestrian, spectator, onlooker, shopper, "
        "backpacker, couple, family, team, group, crowd, band, friend, parent, passenger, audience, bunch, "
        "tourist, pair, trio"
    ),
    "child": (
        "child, kid, toddler, baby, infant, person, someone, teenager, teen, youth, youngster, group, crowd, "
        "team, friend, student, player, couple, family, bunch, adult, pair, trio, sibling, one"
    ),
    "animal": "animal, pet, creature, pack, herd",
    "minor": "person, someone, group, crowd, family, bunch, friend, student, team",
    "vehicle": "vehicle",
    "sport": "game, sport",
    "food": "~food, meal, snack, treat",
    "garment": "~clothing, *clothes",
}

# What goes with a family in the same picture so often, or is mixed up with it so easily, that naming the one keeps the
# other from being offered. Both ways; ``things`` are objects and places.
ALONG: dict[str, tuple[str, ...]] = {
    "things": (
        "man, boy",
        "man, adult",
        "woman, adult",
        "soldier, uniform",
        "woman, girl",
        "ball, frisbee, toy",
        "toy, teddy bear, stick, rope, kite, balloon",
        "bicycle, motorcycle",
        "motorcycle, car",
        "skateboard, bicycle",
        "bench, chair, couch, bed, table",
        "fence, bridge, brick wall, stadium",
        "fountain, water",
        "boat, water, sand",
        "train, street, train station",
        "car, street",
        "ball, soccer, stadium",
        "ball, basketball, stadium",
        "ball, baseball, stadium",
        "ball, volleyball, stadium",
        "ball, tennis, stadium",
        "ball, golf, stadium",
        "ball, hockey, stadium",
        "gloves, hockey, snow",
        "boots, snow",
        "flag, umbrella, kite",
        "coat, shirt, uniform, dress",
        "hat, uniform",
        "water, sand, mud, fountain",
        "grass, forest, mud",
        "forest, mountain, path",
        "snow, mountain",
        "mountain, sand, path",
        "street, building, parking lot, bus",
        "building, room, train station",
        "room, stage, train station",
        "mud, street, sand, path",
        "path, street, grass, stadium",
        "stage, street, stadium",
    ),
    "colour": (
        "red, orange, pink",
        "yellow, orange, brown",
        "pink, purple",
        "blue, purple, green",
        "gray, black, blue",
        "gray, white, yellow",
        "brown, red",
    ),
    "action": (
        "run, jump, chase, play, fight, catch, ride, walk",
        "walk, climb, cross, ride, ski",
        "sit, ride, lie, eat, swing, read, play, float, kneel",
        "lie, sleep, sit, float, swim",
        "kneel, climb, pet, look",
        "stand, hold, look, walk, climb, talk",
        "swim, jump, play, surf, float, wash",
        "dance, jump, play, sing, run",
        "hold, catch, throw, pet, pull, drink, eat",
        "throw, play, catch, drop",
        "cry, shout",
        "shout, sing, smile, talk",
        "point, look, wave, talk",
        "lick, play, eat, fight, catch, pet",
        "push, fight, pull, play",
        "crawl, climb",
        "repair, paint",
        "look, photograph, read",
        "sell, hold",
        "fall, jump",
    ),
}

# What must stand before a noun phrase of a slot for its noun to be replaced: prepositions, and verbs in any form. Any
# other word there asks for this noun and no other ("swings on a rope"). Slots without an entry take any.
GOVERNORS: dict[str, str] = {
    "portable": "with, after, hold, carry, catch, fetch, retrieve, throw, toss, chase, grab, drop, have, has",
    "ridden": "ride, on, with, push, beside, next to, near, by, behind, in front of, has, have",
    "vehicle": (
        "near, by, beside, next to, behind, in front of, past, drive, with, wash, inside, at, towards, toward, in"
    ),
    "furniture": "on, near, by, beside, next to, behind, in front of, under, against, atop, on top of, underneath",
    "structure": (
        "near, by, beside, next to, behind, in front of, past, against, at, with, around, toward, towards, along"
    ),
    "instrument": "play, hold, with, carry, has, have",
    "sport": "play, watch, of, enjoy",
    "food": "eat, hold, with, chew, bite, has, have, of, share, enjoy",
    "garment": "wear, in, with, has, have, hold, carry",
    "garments": "wear, in, with, has, have",
}

# Colours as families; the words before the colon are offered.
COLOURS = """
    black: black-and-white
    white: cream, whitish
    brown: tan, beige, golden, caramel, khaki, brownish, chestnut, bronze, chocolate
    gray: grey, silver, greyish
    red: maroon, crimson, burgundy, scarlet, reddish
    orange: peach
    yellow: gold, blond, blonde, golden
    green: olive, lime
    blue: teal, turquoise, navy, aqua
    purple: violet, lavender, magenta
    pink: fuchsia
"""
# Nothing can be said of these against another colour.
COLOUR_HIDING = "dark, light, bright, pale, neon, colorful, colourful, multicolored, multicolor, deep, navy, off, hot"
FUR = ("black", "white", "brown", "gray")

# Opposites and alternatives: each group is a family of its own words, and a word is replaced by one of another part.
# ``parts | of | a group``; the first word of a part is offered.
ATTRIBUTES: tuple[str, ...] = (
    "small, little, tiny, mini, miniature, smaller | large, big, huge, giant, enormous, massive, larger",
    "tall, high, towering | short, low",
    "long | short",
    "elderly, old, older, aged, senior | young, younger, youthful, teenage, teenaged",
    "wet, soaked, damp, soggy | dry",
    "wooden, wood | metal, steel, iron | stone, brick, concrete, cement, rock, marble | plastic, inflatable | glass",
    "leather | denim | fur, furry | plastic",
    "empty, deserted, vacant, quiet | crowded, busy, packed, full",
    "open | closed, shut",
    "clean, shiny, new | dirty, muddy, rusty, dusty",
    "deep | shallow",
    "sunny | rainy, stormy, foggy, cloudy, overcast",
    "striped, stripe, stripy | checkered, plaid, checked | polka-dotted, polka dot, spotted, dotted",
    "happy, smiling, cheerful, laughing | sad, unhappy, crying | angry, upset, mad",
    "indoor, indoors, inside | outdoor, outside, outdoors",
    "round, circular | square, rectangular",
    "left | right",
    "thick, fat | thin, skinny, slim, slender",
    "steep | flat",
    "narrow | wide, broad",
    "curly, wavy | straight",
    "paved, asphalt | dirt, gravel, unpaved, cobblestone",
    "male | female",
    "frozen, icy | warm",
    "snowy, snow-covered, icy | sandy | grassy | muddy | rocky | flooded, wet",
)
# Attribute -> the words that it may stand before; without an entry, before any noun. ``!`` turns it round.
BEFORE: dict[str, str] = {
    "small": (
        "!boy, girl, child, kid, boys, girls, children, kids, baby, toddler, infant, bit, while, one, ones, league"
    ),
    "large": "!boy, girl, boys, girls, children, kids, child, baby, top, ones, one",
    "tall": (
        "man, woman, boy, girl, person, building, tree, grass, fence, wall, tower, ladder, statue, rock, men, "
        "women, trees, buildings, hill, cliff, mountain"
    ),
    "long": ("hair, hairs, haired, pole, stick, dress, skirt, coat, table, bridge, rope, sleeves, scarf, grass, slide"),
    "elderly": (
        "man, woman, men, women, lady, ladies, couple, person, people, gentleman, guy, female, male, adult, adults"
    ),
    "wet": "!suit, nurse",
    "open": "door, window, mouth, gate, eyes, book, umbrella, box",
    "wooden": (
        "fence, bench, table, wall, bridge, chair, steps, stairs, railing, floor, door, box, building, gate, "
        "pole, post, structure, beam, platform, house, boat, bucket, ladder, deck, dock, pier, walkway, ramp, "
        "bowl, tunnel, staircase"
    ),
    "leather": "jacket, coat, vest, skirt, bag, hat, boots, gloves, chair, couch, pants",
    "left": "hand, foot, arm, leg, side, ear, eye, shoulder",
    "sunny": "day, morning, afternoon, weather, sky",
    "indoor": (
        "pool, court, market, concert, event, arena, gym, track, rink, playground, restaurant, stage, basketball"
    ),
    "happy": "man, woman, boy, girl, child, baby, couple, people, children, person, family, kids, dog",
    "clean": ("car, truck, dog, shirt, street, floor, water, window, sidewalk, road, pants, shoes, clothes, boy, girl"),
    "striped": (
        "shirt, shirts, hat, dress, sweater, scarf, pants, shorts, tie, jacket, skirt, blanket, towel, umbrella, "
        "bikini, swimsuit, shirt, sock, socks, trunks, top, cloth, outfit"
    ),
    "empty": (
        "street, streets, beach, room, sidewalk, road, field, restaurant, pool, park, parking, table, train, bus, "
        "stadium"
    ),
    "thick": "man, woman, tree, rope, trees, stick, branch, log, book",
    "frozen": "lake, river, pond, water, waterfall",
    "paved": "road, path, street, trail, track, walkway, area, surface",
    "snowy": (
        "hill, field, mountain, path, road, landscape, area, slope, ground, hillside, trail, cliff, mountainside, "
        "yard, beach, shore"
    ),
    "steep": "hill, slope, road, path, roof, mountain, cliff, ground, rock",
    "male": (
        "skier, climber, hiker, biker, runner, dancer, player, singer, surfer, cyclist, swimmer, skater, athlete, "
        "soccer, tennis, basketball, hockey, musician, performer, gymnast, rider, child, artist"
    ),
    "deep": "water, pool, snow, river, lake, hole, end",
    "narrow": "street, road, path, bridge, river, stream, trail, alley, sidewalk, creek, ledge, hallway",
    "curly": "hair, haired",
    "round": "table, window, building, pool, mirror, box, sign, rug, object, hole",
}

# What subjects do. Families for recognition; the forms are made by rule or from PAST and DOUBLING.
VERBS = """
    run: race, sprint, jog, dash, gallop, trot, bound, rush, charge, hurry
    walk: stroll, march, wander, trek, step, strut, hike
    jump: leap, hop, spring, bounce, flip, dive, fly, soar, lunge, launch, skip
    crawl: creep, sneak, slither
    climb: scale, ascend, rappel, clamber
    dance: twirl, spin
    swim: wade, splash, paddle, snorkel, bathe
    float: drift, sail, row, kayak, canoe, raft
    surf: wakeboard, waterski, windsurf, bodyboard, parasail
    ski: snowboard, sled, skate, skateboard, sledge, slide, roll, skid, glide, coast
    ride: drive, bike, pedal, cycle, steer, travel
    sit: rest, perch, relax, lounge, straddle
    stand: pose, wait, stop, pause, lean, gather
    lie: lay, recline, sunbathe, sprawl
    sleep: nap, snooze, doze
    kneel: crouch, squat, bend, stoop
    play: frolic, romp, perform, enjoy, compete, practice
    fight: wrestle, struggle, box, brawl, argue
    look: stare, gaze, peer, glance, face, watch, observe, view, admire, inspect, examine, see, overlook
    point: gesture
    wave:
    smile: grin, laugh, giggle, smirk
    cry: weep, sob, frown, whine
    yawn:
    shout: yell, scream, bark, growl, howl
    sing: hum, chant
    talk: speak, chat, converse, discuss
    hold: grip, grab, clutch, grasp, carry, cradle, cling
    pet: stroke, hug, cuddle, embrace
    wear: dress
    catch: fetch, retrieve
    throw: toss, pitch, hurl, fling
    drop: spill, release
    kick: hit, strike, punch, swat, bat
    chase: follow, pursue, hunt
    ignore:
    lead: guide
    hide:
    eat: chew, munch, nibble, feed, bite, taste, devour
    drink: sip, slurp, gulp
    cook: bake, grill, fry, roast
    read: study
    teach: coach, instruct
    write: draw, sketch, sign
    paint: color, spray
    wash: clean, scrub, sweep, wipe, mop, rinse
    push: shove
    pull: drag, tow, tug, haul
    repair: fix, build, construct, mend, work
    bury: dig
    burn:
    lick: kiss, sniff, smell, nuzzle
    swing: dangle, hang
    cross: pass
    photograph: film, videotape, record, shoot
    sell: buy, shop, pay
    fold: iron
    fall: tumble, trip, slip, crash
    fish:
    tear: rip, shred
"""
# Words that say of somebody what a verb does.
STATES = {"seated": "sit", "asleep": "sleep", "playful": "play", "swam": "swim", "upright": "stand"}

# (what follows the verb, verbs that may be replaced, verbs offered in their place).
# static: a place preposition or nothing; path: a preposition of direction; over, up: these; with, at, to: these;
# else a direct object whose noun is of one of the slots.
ACTIONS: tuple[tuple[str, str, str], ...] = (
    (
        "path",
        "run, walk, race, sprint, jog, dash, gallop, trot, march, stroll, hike, wander, bound",
        "run, walk, crawl",
    ),
    ("path", "ski, snowboard, sled, skate, skateboard, slide, ride, bike, pedal, cycle, drive", "walk, run"),
    ("path", "swim, wade, paddle, splash, climb, crawl", "run, walk"),
    ("over", "jump, leap, hop, bound", "walk, climb, crawl"),
    ("over", "run, walk, climb", "jump, crawl"),
    ("static", "run, race, jog, sprint, bound, leap, jump, trot", "sit, lie, sleep, kneel, crawl"),
    ("static", "walk, stroll, hike, wade, swim, march", "sit, lie, sleep, dance, kneel"),
    ("static", "sit, rest, relax", "stand, dance, kneel"),
    ("static", "lie, lay, sleep, nap", "stand, dance, walk, run, kneel"),
    ("static", "stand, pose, wait", "sit, lie, sleep, dance, run, kneel"),
    ("static", "kneel, crouch, squat", "stand, dance, lie, sleep, run"),
    ("static", "play, frolic, romp", "sleep, eat, fight, sit"),
    ("static", "wrestle, fight, dance, laugh, talk, chat, sing", "sleep, lie, read, eat"),
    ("static", "climb, swing, slide, hang, skate, ski, bike, surf, skateboard", "sleep, sit, dance, stand"),
    ("static", "eat, drink, read, fish", "sleep, dance, sing, stand"),
    ("static", "smile, laugh, grin", "cry, yawn, frown"),
    ("static", "splash, paddle, float, dive", "stand, sleep, dance"),
    ("at", "look, smile, stare, laugh, gaze, grin, point, glance", "shout, wave, frown"),
    ("to", "talk, speak", "wave, shout, sing"),
    ("with", "talk, chat, walk, play, wrestle, run, dance", "fight, sleep, sit, argue"),
    ("portable", "hold, carry, grip, grab", "drop, throw, wash, hide"),
    ("portable", "catch, fetch, retrieve, chase", "drop, ignore, bury"),
    ("portable", "throw, toss, drop", "catch, carry, hide"),
    ("portable", "read", "tear, fold, burn"),
    ("garment garments", "wear", "hold, carry, wash, fold"),
    ("animal adult child", "hold, carry, hug, pet, kiss, lick", "push, chase, ignore"),
    ("animal adult child", "chase, follow, pursue", "lead, lick, ignore"),
    ("animal", "walk, feed, ride, lead", "wash, pet, chase"),
    ("animal adult child", "watch", "chase, kiss, push"),
    ("ridden vehicle", "ride, drive, pedal, race", "push, repair, wash, paint"),
    ("ridden vehicle", "push, pull, drag", "ride, wash, paint"),
    ("structure", "climb, scale", "paint, wash, photograph"),
    ("structure", "watch", "paint, wash, climb"),
    ("instrument", "play, hold", "repair, sell, clean"),
    ("sport", "play", "watch, teach"),
    ("food", "eat, hold, chew, bite", "throw, drop, sell, cook"),
    ("street", "cross", "sweep, paint, wash"),
)
STATIC = (
    "in, on, at, by, near, beside, behind, outside, inside, under, among, against, next to, in front of, on top of,"
)
STATIC += "atop, underneath, beneath, amongst, together, alone"
PATH = (
    "through, across, along, down, up, past, towards, toward, into, around, away, out, onto, uphill, downhill, "
    "alongside"
)

# Places: families, then for each offered place the prepositions that go with it.
PLACES = """
    ~water / lake / river / pool / pond: ocean, sea, bay, creek, stream, swimming pool, canal, *waters, ~surf, \
        *waves : underwater, watery, shoreline, harbor, riverbank, river bank, pier, dock, beach, wave, puddle, \
        waterfall, *rapids
    ~snow: ~ice, ski slope, snowbank, snowdrift, glacier: snowy, snow-covered, icy, snowball, winter
    ~grass / meadow / garden: field, lawn, park, yard, backyard, pasture, grassland, playground, *weeds, \
        clearing, ~hay : grassy, hillside, flower, plant, turf, farm, leafy
    ~sand / desert: beach, shore, dune, shoreline, seashore, coast, sandbox: sandy, seaside
    street / sidewalk / parking lot: road, city, alley, intersection, ~pavement, crosswalk, town, driveway, \
        roadway, curb, highway, ~asphalt, ~concrete, courtyard, plaza: downtown, ~traffic, urban, corner, lane, \
        lot, ~cement, walkway, paved
    forest: *woods, jungle, ~woodland, *trees, *bushes, *leaves: wooded, tree
    mountain / cliff: hill, mountainside, canyon, ledge, peak, slope, hillside, mountaintop, valley, summit : \
        rock, rocky, stone, boulder
    kitchen / library / classroom / office: room, living room, bedroom, hallway, gym, house, home, restaurant, \
        museum, bathroom, garage, bar, mall, bookstore, shop, store, cafe, school, church, diner, apartment : \
        indoors, indoor, inside, floor, couch, bed, sofa, carpet, table, chair, rug, desk, market
    ~mud: ~dirt, ~clay: muddy, puddle, ~dust
    stage: : performance, concert, arena, theater
    stadium: arena, ballpark, ~bleachers, rink: crowd, court, track, spectator, race
    train station / airport: subway station, station, bus stop, bus station: subway, railroad, railway, \
        platform, airplane
    : path, trail, pathway, boardwalk, bridge: walkway, track
"""
PLACE_AFTER: dict[str, str] = {
    "water": "in, through, into, near, by, across",
    "lake": "in, near, by, into, across, beside, next to, along",
    "river": "in, near, by, into, across, beside, next to, along",
    "pool": "in, near, by, into, beside, next to",
    "pond": "in, near, by, into, beside, next to",
    "snow": "in, on, through, across, over, into",
    "grass": "in, on, through, across, over, into",
    "meadow": "in, through, across, into",
    "garden": "in, through, near, across",
    "sand": "in, on, through, across, over",
    "desert": "in, through, across",
    "street": "on, down, across, along, in",
    "sidewalk": "on, down, across, along",
    "parking lot": "in, through, across",
    "forest": "in, through, into, near",
    "mountain": "on, down, up, near, over",
    "cliff": "on, near, down, over",
    "kitchen": "in, through, into",
    "library": "in, through, into, at",
    "classroom": "in, through, into",
    "office": "in, through, into, at",
    "mud": "in, through, into, across",
    "stage": "on, across, onto, near",
    "stadium": "in, at, near, into",
    "train station": "in, at, near, through",
    "airport": "in, at, near, through",
}
# Whoever does these things, or sits in these, is bound to the place.
BOUND = (
    "swim, wade, splash, paddle, dive, surf, wakeboard, waterski, float, sail, row, kayak, canoe, raft, fish, "
    "ski, snowboard, sled, snowmobile, boat, snorkel, tube, windsurf, parasail, sunbathe, climb, rappel"
)

# (preposition, its opposite, verbs that must stand before it, nouns that must follow it); empty: any.
_MOTION = (
    "run, walk, jump, leap, climb, crawl, hop, step, dive, fall, throw, hike, race, march, slide, ski, ride, drive"
)
_SLOPES = (
    "hill, mountain, stairs, steps, cliff, ladder, slope, ramp, staircase, mountainside, tree, wall, rock, hillside"
)
RELATIONS: tuple[tuple[str, str, str, str], ...] = (
    ("in front of", "behind", "", ""),
    ("behind", "in front of", "", ""),
    ("on top of", "underneath", "", ""),
    ("atop", "underneath", "", ""),
    ("under", "on top of", "", ""),
    ("underneath", "on top of", "", ""),
    ("beneath", "on top of", "", ""),
    ("next to", "far away from", "", ""),
    ("beside", "far away from", "", ""),
    ("into", "out of", _MOTION, ""),
    ("out of", "into", _MOTION, ""),
    ("up", "down", _MOTION, _SLOPES),
    ("down", "up", _MOTION, _SLOPES),
    ("inside", "outside", "", ""),
    ("outside", "inside", "", "building, house, store, shop, tent, restaurant, church, window, door, gate"),
    ("above", "below", "", ""),
    ("below", "above", "", ""),
    ("towards", "away from", "", ""),
    ("toward", "away from", "", ""),
    ("away from", "towards", "", ""),
    ("off", "onto", _MOTION, ""),
    ("onto", "off", _MOTION, ""),
)
# Opposite -> phrases that say it.
SAME_RELATION: dict[str, str] = {
    "behind": "behind, in back of, background",
    "in front of": "in front of, before, foreground, in front",
    "underneath": "under, underneath, beneath, below",
    "on top of": "on top of, atop, on top, over, above",
    "far away from": "far, distance, away",
    "out of": "out of, from, leaving, emerging, emerges, exits, exiting",
    "into": "into, enters, entering",
    "down": "down, downhill, descends, descending",
    "up": "up, uphill, climbing, climbs, climb",
    "outside": "outside, outdoors, out of",
    "inside": "inside, indoors",
    "below": "below, under, underneath, beneath",
    "above": "above, over, on top of",
    "away from": "away, from",
    "towards": "toward, towards, to",
    "onto": "onto, on",
    "off": "off, from, over",
}

# A man who is bald, a woman in a dress: what tells of the gender, or sounds odd with the other one.
GENDERED = (
    "beard, bearded, mustache, moustache, shirtless, bald, pregnant, bikini, bikinis, ponytail, pigtails, "
    "pigtail, dress, dresses, skirt, makeup, gown, topless, bra, heels, goatee, braids, kimono, lipstick, "
    "tuxedo, mohawk, sari, boyfriend, girlfriend, trunks, kilt, dreadlocks, leotard"
)

# Forms that no rule gives.
PLURALS = {
    "man": "men",
    "woman": "women",
    "gentleman": "gentlemen",
    "businessman": "businessmen",
    "businesswoman": "businesswomen",
    "fisherman": "fishermen",
    "fireman": "firemen",
    "child": "children",
    "person": "people",
    "somebody": "somebodies",
    "calf": "calves",
    "wolf": "wolves",
    "mouse": "mice",
    "goose": "geese",
    "scarf": "scarves",
    "knife": "knives",
    "wife": "wives",
    "deer": "deer",
    "ox": "oxen",
    "bus": "buses",
    "leaf": "leaves",
    "hobby": "hobbies",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "piano": "pianos",
    "bison": "bison",
    "buffalo": "buffalo",
}
PAST = {
    "run": "ran",
    "leap": "leapt",
    "spring": "sprang",
    "dive": "dove",
    "fly": "flew",
    "creep": "crept",
    "swim": "swam",
    "spin": "spun",
    "ride": "rode",
    "drive": "drove",
    "steer": "steered",
    "sit": "sat",
    "stand": "stood",
    "lie": "lain",
    "lay": "laid",
    "sleep": "slept",
    "kneel": "knelt",
    "bend": "bent",
    "fight": "fought",
    "see": "seen",
    "sing": "sang",
    "speak": "spoke",
    "hold": "held",
    "wear": "worn",
    "catch": "caught",
    "throw": "thrown",
    "get": "got",
    "hit": "hit",
    "eat": "eaten",
    "bite": "bitten",
    "feed": "fed",
    "drink": "drank",
    "read": "read",
    "write": "written",
    "draw": "drawn",
    "sweep": "swept",
    "build": "built",
    "dig": "dug",
    "swing": "swung",
    "hang": "hung",
    "shoot": "shot",
    "sell": "sold",
    "buy": "bought",
    "fall": "fallen",
    "tear": "torn",
    "slide": "slid",
    "cling": "clung",
    "bat": "batted",
}
DOUBLING = (
    "run, jog, swim, hit, hop, hug, pet, grab, grip, drop, chat, dig, nap, stop, step, get, tug, drag, sit, "
    "trot, sip, spin, skip, flip, pat, rip, slip, trip, shop, bat, mop, hum, sob, skid, clap, dip, sled, "
    "scrub, strut"
)
