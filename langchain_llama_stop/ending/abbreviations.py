"""Words with a full stop that ends no sentence: data, by language.

A word is written as it stands before its last full stop. All are case-sensitive; a lower-case one
is also known with a capital, at the head of a sentence. What often ends a sentence (etc., usw.,
osv., units of measure) is left out. Letters with full stops between them (d.w.z.) need no entry.
"""


def _with_capitals(words: str) -> frozenset[str]:
    return frozenset(form for word in words.split() for form in (word, word[0].upper() + word[1:]))


ABBREVIATIONS = _with_capitals(
    # English: titles, ranks, references
    "Comdt Commr Cmdre Cdre Archbp Dr Drs Mr Mrs Ms Mx Prof Profs Rev Revd Hon Messrs Mmes Gov "
    "Sen Sens Reps Pres Supt Insp "
    "Cllr "
    "Amb Treas Msgr Mgr Fr Ven Gen Genl Brig Adm RAdm VAdm Col Maj Capt Capts Cpt Cmdr Cdr Comdr "
    "Cmdt Lt Lieut Sgt Sgts SSgt MSgt Sergt Cpl LCpl Pvt Pfc Pte Spc Ens Ald Atty Asst Assoc "
    "Const "
    "Ph Eq Eqs Eqn Figs Fig Vol Vols Chs Chap Nos Thm Prop Cor Lem Def "
    "e.g i.e eg ie cf vs viz approx ca pp incl excl resp esp eds "
    # Spanish
    "Sr Sra Sres Sras Srta Srtas Dra Dres Dras Ud Uds Vd Vds Dña Profa Profª Lic Licda Arq Gral "
    "Cnel Tte Cmte Alm Mons Pbro Excmo Excma Ilmo Ilma Rvdo Rvda Sto Hno Hna Hnos Pdte Vda Stgo "
    "ej p.ej pág págs pag pags núm núms caps avda ctra pza pzta tfno tlf aprox dpto depto izq "
    "dcha párr vid EE RR FF JJ CC "
    # Portuguese, Galician, Catalan
    "Exmo Exma Exmos Ilma Srs Eng Engª Drª Srª Sgto p.ex obs pç trav "
    "núms apto sécs pàg "
    # French
    "Mme Mlle Mmes Mlles MM Mgr Mᵍʳ Vve env apr bd boul tél réf p.ex c.-à-d c.à.d càd "
    "Pr Cie éd éds "
    # German
    "Hr Hrn Frl Dipl Mag Nr Nrn Str bzw bspw vgl ggf ggfs evtl inkl exkl zzgl abzgl einschl "
    "ausschl "
    "sog sogen entspr insb insbes bes Abb Abs Abschn Anm Aufl Bd Bde Hrsg hrsg Kap "
    "Ziff geb gest verh ehem urspr österr dt griech lat allg bzgl betr z.B d.h z.T "
    "Tel Telefonnr Hptm Oblt Obst Uffz "
    # Dutch, Afrikaans
    "dhr mevr mw drs prof ds bijv bv blz nrs evt jhr jkvr jl zgn zog plm d.w.z m.a.w "
    "o.a i.p.v t.o.v m.b.t t.a.v i.v.m mnr mev "
    # Danish, Norwegian
    "hr frk bl.a f.eks feks dvs pga ifm ift mht bla evt ekskl vedr jf jfr tlf afd alm hhv iflg "
    "kgl maks nuv pk ugtl vejl vha årg fmd løjtn kapt oberstlt kl nr s.k ev ca "
    # Swedish, Finnish
    "t.ex d.v.s t.o.m fr.o.m f.n p.g.a m.a.o jmf motsv kungl fd f.d esim ns ks vrt tri puh nro "
    "klo "
    # Icelandic, Estonian, Latvian, Lithuanian
    "þ.e t.d hra nt lk piem pvz gerb vad kun proc "
    # Polish
    "m.in rys att yth кн np tzn tj tzw ul pl mgr inż hab lek św im płk ppłk kpt ppor sierż mjr "
    "obr godz wg "
    "cd jw rozdz dr ks bp abp woj pow gm "
    # Czech, Slovak
    "např napr tzv čís nám tř sv Ing Mgr MUDr JUDr PhDr RNDr Bc por plk mjr popř příp "
    "kupř cca vč odst písm roč prap genpor MVDr ThDr "
    # Hungarian, Romanian
    "kb ún özv ifj dr pl sz dl dna d-na d-l alin cca "
    # Italian
    "sig sigg sig.ra sig.na sig.re dott dott.ssa prof.ssa avv geom pagg artt cfr figg voll "
    "p.es ad.es spett egr ill.mo cav comm mons tel nn segg "
    # Turkish
    "bkz örn Doç Av Sn Cad Sok Mah Öğr Gör Müh Mim Yrd Alb Yzb Bşk çev yay haz "
    # Indonesian, Malay, Vietnamese
    "yg hlm jl Hj Tn Ny Sdr tgl TS ThS PGS GS Ths Tp TP "
    # Russian, Ukrainian, Bulgarian, Serbian
    "ул пл пр-т просп пер корп стр обл р-н респ пос дер наб бул тов г-н г-жа г-да проф доц акад "
    "д-р канд чл-корр чл.-корр см ср напр рис табл гл разд пп ст изд ок прим ред сост англ нем "
    "фр лат греч букв доп кв эт бл буд вул див напр тобто инж ген полк подполк кап лейт "
    "серж св др проф инд т.е т.к т.н т.ч нар дип тел "
    # Greek
    "π.χ δηλ βλ σελ κεφ αρ τηλ οδ λεωφ Αγ Δρ κος Κος καθ παρ "
    # Hindi, Bengali, Arabic, Hebrew
    "डॉ dott प्रो पं सं उदा कृ ডা ড মো د أ م ص "
)

SELDOM_END = frozenset(
    # Before a newline, and where the next words are a new sentence, these do end.
    "Inc Ltd Co Corp Bros Jr Sr St Ste Ave Blvd Rd Ln Hwy Pkwy Bldg Sq Mt Ft Pt No Nr al fig vol "
    "est "
    "dept Dept Univ Esq Intl Natl Assn Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue "
    "Tues "
    "Wed Thu Thur Thurs Fri Rep Sec Det Ch Sect Art Jh Jhd Mio Mrd Tsd mln mld mia mrd млн млрд "
    "тыс "
    "Bro Sis Br Card trans ibid izq dcha им Cía Cia Ltda av avda cit op seq rer rr гг вв "
    "бул".split()
)

HOMOGRAPHS = frozenset(
    # Words of one language, abbreviations of another: the word before them tells which.
    "Sta gem Tab Me mr ir nl ok ex Doc ref chap rag gent cap caps art arts fig vol vols ed on "
    "arch es col gen sen mar sec lic max min máx mín st "
    "ch tel comm ing mag lit dir red adr kap lt fr tom str pos par p dep def mont corp ob sup ter "
    "nom num and ann sign dr bd al os pt im".split()
)
BEFORE_HOMOGRAPH = frozenset(
    # Articles, prepositions and the like of these other languages that are no English words.
    "el la los las una del al o die ver véase en según der den dem des dem im am zum zur vom "
    "siehe "
    "und le "
    "les du au aux voir selon et os da das dos na nos nas ao em de il lo gli della dello nel "
    "nella "
    "dal dalla vedi gr het een zie og av se och enligt patrz na w ve čl viz".split()
)

DOTTED_ENDS = (
    # What may end a sentence although it looks like an abbreviation: "at 5 p.m.", "и т.д."
    *(
        f"{first}.{space}{second}"
        for first, second in (
            pair.split()
            for pair in (
                "a m|p m|A M|P M|т д|т п|m m|m v|m fl|o l|e d|o ä|u ä|u dgl|u b|n e|d o|a C|d "
                "C|A C|B C|C E|"
                "D C|v Chr|n Chr|κ λπ|κ ά|ș a|i pl|f Kr|e Kr|н э|J C"
            ).split("|")
        )
        for space in ("", " ")
    ),
    "и др",
    "и пр",
)

UNITS = frozenset(
    "kg g mg µg t lb lbs oz ft in yd mi km m cm dm mm nm µm l L dl cl ml mL h hr hrs min mins s "
    "sec "
    "secs ms °C °F C F K mph kph kmh Hz kHz MHz GHz V kV mV W kW MW kWh mA Pa kPa hPa bar N J kJ "
    "cal kcal B kB kb KB MB GB TB px pt em rem mol Std Min Sek Stk Kč zł kr руб коп T г кг мг т л "
    "мл м "
    "см мм км ч мин сек р грн в вв гг dB lm lx rpm ppm ha ac gal qt pcs".split()
)

SENTENCE_STARTERS = frozenset(
    # Words, small, that begin sentences more often than names: what follows "Apple Inc. " or "J. "
    "the a an it its he she they we you i this that these those there here if in on at by for "
    "from "
    "with when while where what who why how which as and but or so then thus however also my your "
    "his her their our one two three some many most all no not yes is are was were do does did "
    "can "
    "to after before since because although each every both another other others option options "
    "answer next first second finally now let let's please once during under over between "
    "der die das ein eine es er sie wir ihr ich dies diese dieser dann aber und wenn im am "
    "le la les un une il elle ils elles nous vous je ce cette ces mais et si dans el los las una "
    "ella ellos yo este esta pero y en o os as um uma ele ela eles isto mas e lo gli i uno lui "
    "lei "
    "questo questa ma het een hij zij wij dit dat deze maar en det den han hun hon de vi jeg men "
    "og "
    "och это он она они мы вы я но и в на to ten ta on ona oni jest bu bir ve".split()
)

LETTER_NOUNS = frozenset(
    # What is named by a letter: "Option B." is no half name, as "George W." is.
    "option options answer choice plan vitamin vitamins type group hepatitis grade class section "
    "part figure point team step exhibit appendix table column row model series schedule item "
    "question letter level block building gate terminal hall room zone line track category phase "
    "variant version case drive malcolm option antwort vitamine opción respuesta réponse".split()
)
